//! The store's errors in the few kinds that a caller can act on.
//!
//! Permanent kinds stop replication and call an operator, so the list of what is permanent is explicit: refusals, what
//! is missing or broken, and answers that say the request itself is wrong (4xx, but for those that are about its timing). Whatever is
//! not on it is [`Kind::Unavailable`] and is tried again.

use std::error::Error as _;

use nbd_proxy::{Error, Kind};

/// How the message of a missing object ends; see [`super::is_missing_object`].
pub(super) const NO_SUCH_OBJECT: &str = "there is no such object";

/// `what` was tried on the object `name` of the store at `url`.
pub(super) fn translate(what: &str, url: &str, name: &str, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let text = chain(&error);
    let verdict = match (&error, said(&text)) {
        _ if missing_container(&text) => Verdict::NO_CONTAINER,
        (E::NotFound { .. }, _) => {
            let message = format!("cannot {what}: {NO_SUCH_OBJECT}");
            return Error::new(Kind::NotFound, name, message).source(error);
        }
        (_, Some(verdict)) => verdict,
        (E::AlreadyExists { .. } | E::Precondition { .. }, _) => Verdict(Kind::Exists, ""),
        (E::PermissionDenied { .. } | E::Unauthenticated { .. }, _) => Verdict(Kind::Denied, CREDENTIALS),
        (E::InvalidPath { .. }, _) => {
            Verdict(Kind::InvalidInput, "check the vault's url and the machine's name")
        }
        (E::NotSupported { .. } | E::NotImplemented { .. }, _) => Verdict(Kind::InvalidInput, UNABLE),
        (E::UnknownConfigurationKey { .. }, _) => {
            Verdict(Kind::InvalidInput, "remove it from the vault's options")
        }
        _ => local(&error).unwrap_or_else(|| generic(&text)),
    };
    let object = if verdict == Verdict::NO_CONTAINER { url } else { name };
    let message = format!("cannot {what}: {}", shorten(&text));
    Error::new(verdict.0, object, message).remedy(verdict.1).source(error)
}

/// What to do, and what to tell the operator.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Verdict(Kind, &'static str);

impl Verdict {
    const NO_CONTAINER: Self =
        Self(Kind::NotFound, "create the bucket or container, or correct the vault's url");
}

fn missing_container(text: &str) -> bool {
    [
        "NoSuchBucket",
        "ContainerNotFound",
        "specified container does not exist",
        "specified bucket does not exist",
    ]
    .iter()
    .any(|sign| text.contains(sign))
}

const CREDENTIALS: &str = "check the credentials and what they are allowed to do";
const ROOM: &str = "make room in the store, or raise its quota";
const UNABLE: &str = "this store lacks what a vault needs: `lifeboat vault check` says what";
const COLD: &str =
    "bring the object back from cold storage, and take rules that move objects there off the vault";

/// What stores say that means something else than the status it comes with: error codes of S3, of Azure, of those who
/// give out tokens, and of stores that speak like S3. The first that is found counts.
const SAID: &[(&str, Verdict)] = &[
    ("RequestTimeTooSkewed", Verdict(Kind::Denied, "set this host's clock")),
    // Tokens: loaded again, these may have been renewed.
    ("ExpiredToken", Verdict(Kind::Denied, CREDENTIALS)),
    ("InvalidToken", Verdict(Kind::Denied, CREDENTIALS)),
    ("TokenRefreshRequired", Verdict(Kind::Denied, CREDENTIALS)),
    ("InvalidIdentityToken", Verdict(Kind::Denied, CREDENTIALS)),
    ("IDPRejectedClaim", Verdict(Kind::Denied, CREDENTIALS)),
    ("InvalidAuthenticationInfo", Verdict(Kind::Denied, CREDENTIALS)),
    ("invalid_client", Verdict(Kind::Denied, CREDENTIALS)),
    ("invalid_grant", Verdict(Kind::Denied, CREDENTIALS)),
    ("AADSTS", Verdict(Kind::Denied, CREDENTIALS)),
    ("KMS.", Verdict(Kind::Denied, "the store cannot use the key that it encrypts with: see to that key")),
    ("BlobImmutableDueToPolicy", Verdict(Kind::Denied, "the store keeps the object until its lock runs out")),
    // Room: somebody may make some.
    ("QuotaExceeded", Verdict(Kind::NoSpace, ROOM)),
    ("StorageFull", Verdict(Kind::NoSpace, ROOM)),
    ("507 Insufficient Storage", Verdict(Kind::NoSpace, ROOM)),
    // Moved away.
    ("InvalidObjectState", Verdict(Kind::InvalidInput, COLD)),
    ("BlobArchived", Verdict(Kind::InvalidInput, COLD)),
    ("BlobBeingRehydrated", Verdict(Kind::Unavailable, "the object is on its way from cold storage")),
    // Conflicts that are no answer to whether a name is taken.
    ("ConditionalRequestConflict", Verdict(Kind::Unavailable, "")),
    ("OperationAborted", Verdict(Kind::Unavailable, "")),
    ("ContainerBeingDeleted", Verdict(Kind::Unavailable, "the container is being deleted: make it again")),
    ("AccountBeingCreated", Verdict(Kind::Unavailable, "")),
    ("501 Not Implemented", Verdict(Kind::InvalidInput, UNABLE)),
    ("405 Method Not Allowed", Verdict(Kind::InvalidInput, UNABLE)),
];

fn said(text: &str) -> Option<Verdict> {
    SAID.iter().find(|(sign, _)| text.contains(sign)).map(|(_, verdict)| *verdict)
}

/// A failed operation on a plain folder.
fn local(error: &object_store::Error) -> Option<Verdict> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    Some(Verdict(Kind::Denied, "check who owns the vault's folder"))
                }
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    Some(Verdict(Kind::NoSpace, "make room where the vault is"))
                }
                std::io::ErrorKind::ReadOnlyFilesystem => {
                    Some(Verdict(Kind::Denied, "the vault's file system is mounted read-only"))
                }
                _ => None,
            };
        }
        cause = error.source();
    }
    None
}

/// Where a host of the cloud gets credentials of its own: asked when the operator gave none.
const HOST_CREDENTIALS: &[&str] = &["169.254.169.254", "metadata.google", "api/token"];

fn generic(text: &str) -> Verdict {
    let says = |signs: &[&str]| signs.iter().any(|sign| text.contains(sign));
    if says(&["416 ", "InvalidRange", "range was invalid", "but object was only", "Out of range of file"]) {
        return Verdict(Kind::Corrupt, "the object is shorter than what was written");
    }
    if says(&["UnknownIssuer", "invalid peer certificate", "certificate verify failed", "InvalidCertificate"])
    {
        return Verdict(
            Kind::Denied,
            "name the authority that signed the store's certificate: ca_file in [vault], or --ca-file",
        );
    }
    if says(HOST_CREDENTIALS) {
        // A service that says no gives none; one that does not answer may do so later.
        let kind = if status(text).is_some_and(hopeless) { Kind::Denied } else { Kind::Unavailable };
        return Verdict(kind, "set the AWS_* or AZURE_* variables that hold them, or [vault.options]");
    }
    if says(&["InvalidBucketName", "InvalidResourceName", "InvalidUri", "AuthorizationHeaderMalformed"]) {
        return Verdict(Kind::InvalidInput, "check the vault's url, region and endpoint");
    }
    if says(&["Received redirect", "301 Moved Permanently", "PermanentRedirect"]) {
        return Verdict(Kind::InvalidInput, "the bucket is elsewhere: check region and endpoint");
    }
    if says(&["onnection refused", "dns error", "failed to lookup"]) {
        return Verdict(Kind::Unavailable, "check the endpoint and that the store is running");
    }
    match status(text) {
        Some(401 | 403) => Verdict(Kind::Denied, CREDENTIALS),
        Some(status) if hopeless(status) => Verdict(
            Kind::InvalidInput,
            "the store does not understand what it is asked for: check the vault's url, region and options",
        ),
        _ => Verdict(Kind::Unavailable, ""),
    }
}

/// The status that the store answered with.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// The store will say the same next time: our request is at fault, and it is not for its timing.
fn hopeless(status: u16) -> bool {
    (400..500).contains(&status) && !matches!(status, 408 | 409 | 423 | 425 | 429)
}

/// The error and its causes in one line, each said once.
fn chain(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Stores answer with pages of XML, and the library below tells the story of its retries: the code and message of the
/// one, the request and the last cause of the other are enough for people.
fn shorten(text: &str) -> String {
    let field = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(value, _)| value.lines().next().unwrap_or(value))
    };
    let short = match (field("Code"), field("Message")) {
        (Some(code), Some(message)) => format!("the store says {code}: {message}"),
        (Some(code), None) => format!("the store says {code}"),
        _ if HOST_CREDENTIALS.iter().any(|sign| text.contains(sign)) => {
            let has =
                if status(text).is_some_and(hopeless) { "none of its own" } else { "nobody to ask for some" };
            format!("no credentials were given, and this host has {has}")
        }
        _ => request(text).unwrap_or_else(|| text.split_whitespace().collect::<Vec<_>>().join(" ")),
    };
    match short.char_indices().nth(400) {
        Some((at, _)) => format!("{}…", &short[..at]),
        None => short,
    }
}

/// "… Error performing GET https://host/object in 3s, after 2 retries, … - HTTP error: … (Connect): cause" as
/// "GET https://host/object: cause"; nothing if the text is of another form.
fn request(text: &str) -> Option<String> {
    let (_, story) = text.split_once("Error performing ")?;
    let (request, rest) = story.split_once(" in ")?;
    let (_, cause) = rest.split_once(" - ")?;
    let noise =
        ["HTTP error: ", "error sending request: ", "client error (Connect): ", "tcp connect error: "];
    let cause = noise.iter().fold(cause, |cause, noise| cause.strip_prefix(noise).unwrap_or(cause));
    Some(format!("{request}: {}", cause.split_whitespace().collect::<Vec<_>>().join(" ")))
}

#[cfg(test)]
mod tests;
