//! A store that is asked too much says so, with 429 or 503, and may say for how long it wants to be left alone (`Retry-After`). It
//! is: no request goes out before that. A short while is waited out here, under the library's own retries, which would come back
//! sooner; of a long one the caller is told at once, so that it can say so and wait without holding anything.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

/// What is waited out here.
const SHORT: Duration = Duration::from_secs(5);
/// No store is believed to want more.
const LONGEST: Duration = Duration::from_secs(3600);

/// The store wants to be left alone for this long.
#[derive(Debug)]
pub(crate) struct LeftAlone(pub Duration);

impl fmt::Display for LeftAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store asks to be left alone for {} s", self.0.as_secs_f64().ceil())
    }
}

impl std::error::Error for LeftAlone {}

/// How long the store wants to be left alone, if that is why `error` came about.
pub(crate) fn asked_to_wait(error: &(dyn std::error::Error + 'static)) -> Option<Duration> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(LeftAlone(wait)) = error.downcast_ref() {
            return Some(*wait);
        }
        cause = error.source();
    }
    None
}

/// Makes clients that do as they are asked.
#[derive(Debug)]
pub(super) struct Patience;

impl HttpConnector for Patience {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Patient { inner, until: Mutex::new(None) }))
    }
}

#[derive(Debug)]
struct Patient {
    inner: HttpClient,
    until: Mutex<Option<Instant>>,
}

impl Patient {
    fn until(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> Duration {
        self.until().map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }
}

#[async_trait::async_trait]
impl HttpService for Patient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let alone = |wait| HttpError::new(HttpErrorKind::Unknown, LeftAlone(wait));
        let left = self.left();
        if left > SHORT {
            return Err(alone(left));
        }
        tokio::time::sleep(left).await;
        let response = self.inner.execute(request).await?;
        let Some(wait) = wanted(&response, Timestamp::now()) else { return Ok(response) };
        *self.until() = Some(Instant::now() + wait);
        if wait > SHORT { Err(alone(wait)) } else { Ok(response) }
    }
}

/// What a response asks for.
fn wanted(response: &HttpResponse, now: Timestamp) -> Option<Duration> {
    let busy = matches!(response.status().as_u16(), 429 | 503);
    let value = response.headers().get("retry-after").filter(|_| busy)?.to_str().ok()?;
    after(value.trim(), now)
}

/// `value` is a number of seconds, or a date.
fn after(value: &str, now: Timestamp) -> Option<Duration> {
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
            Duration::try_from(until.duration_since(now)).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST))
}

#[cfg(test)]
mod tests;
