use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;

use nbd_proxy::Kind;

use super::*;
use crate::store::{StoreConfig, open};

/// A store that answers with `answers`, the last of them for ever; says when each request came.
fn serve(answers: &'static [&'static str]) -> (String, Arc<Mutex<Vec<Instant>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let number = seen.lock().unwrap().len();
            seen.lock().unwrap().push(Instant::now());
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let answer = answers.get(number).or(answers.last()).unwrap();
            let _ = write!(stream, "HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
        }
    });
    (endpoint, asked)
}

fn store(endpoint: &str) -> crate::store::Store {
    let options = [("endpoint", endpoint), ("access_key_id", "a"), ("secret_access_key", "b")];
    let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let config = StoreConfig {
        url: "s3://bucket/p".to_owned(),
        options: options.map(own).into(),
        ..StoreConfig::default()
    };
    open(&config, false).unwrap()
}

const NO_CONTENT: &str = "200 OK\r\nContent-Length: 0\r\nETag: \"x\"";

#[tokio::test]
async fn a_store_that_wants_a_moment_gets_it_before_the_next_request() {
    let (endpoint, asked) = serve(&["503 Slow Down\r\nRetry-After: 1\r\nContent-Length: 0", NO_CONTENT]);
    store(&endpoint).put("k", bytes::Bytes::new().into()).await.unwrap();
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 2);
    assert!(asked[1] - asked[0] >= Duration::from_secs(1), "{:?}", asked[1] - asked[0]);
}

#[tokio::test]
async fn a_store_that_wants_to_be_left_alone_is_asked_no_more_and_the_caller_is_told() {
    let (endpoint, asked) = serve(&["429 Too Many Requests\r\nRetry-After: 120\r\nContent-Length: 0"]);
    let store = store(&endpoint);
    for _ in 0..3 {
        let error = store.put("k", bytes::Bytes::new().into()).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable, "{error}");
        assert!(error.message.contains("left alone for 1"), "{error}");
        let wait = asked_to_wait(&error).unwrap();
        assert!(wait > Duration::from_secs(100) && wait <= Duration::from_secs(120), "{wait:?}");
    }
    assert_eq!(asked.lock().unwrap().len(), 1, "it was asked again");
}

#[test]
fn what_is_asked_for_is_seconds_or_a_date_and_no_more_than_an_hour() {
    let now: Timestamp = "2026-03-01T10:00:00Z".parse().unwrap();
    let seconds = |value| after(value, now).map(|wait| wait.as_secs());
    assert_eq!(seconds("17"), Some(17));
    assert_eq!(seconds("Sun, 01 Mar 2026 10:00:30 GMT"), Some(30));
    assert_eq!(seconds("Sun, 01 Mar 2026 09:00:00 GMT"), Some(0));
    assert_eq!(seconds("99999999"), Some(3600));
    assert_eq!(seconds("soon"), None);
}
