//! What people are told of a store's answer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nbd_proxy::{Error, Kind};

use super::translate;

fn told(text: &str) -> Error {
    let source = text.to_owned().into();
    translate("read", "s3://b/p", "s3://b/p/x", object_store::Error::Generic { store: "S3", source })
}

#[test]
fn the_story_of_retries_becomes_the_request_and_its_cause() {
    let error = told(
        "Error performing GET http://127.0.0.1:1/b/p/x in 310.2ms, after 2 retries, max_retries: 2, \
         retry_timeout: 10s - HTTP error: error sending request: client error (Connect): tcp connect error: \
         Connection refused (os error 111)",
    );
    assert_eq!(error.kind, Kind::Unavailable);
    let expected = "cannot read: GET http://127.0.0.1:1/b/p/x: Connection refused (os error 111)";
    assert_eq!(error.message, expected);
    assert!(error.remedy.contains("endpoint"), "{error}");
}

#[test]
fn a_page_of_xml_becomes_its_code_and_message() {
    let error = told(
        "Error performing GET http://h/b in 1ms - Server returned non-2xx status code: 404 Not Found: \
         <?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code><Message>There is none</Message></Error>",
    );
    let shown = (error.kind, error.object.as_str(), error.message.as_str());
    assert_eq!(
        shown,
        (Kind::NotFound, "s3://b/p", "cannot read: the store says NoSuchBucket: There is none")
    );
}

#[test]
fn credentials_that_nobody_gave_are_asked_for() {
    let ask = |answer: &str| {
        told(&format!("Error performing PUT http://169.254.169.254/latest/api/token in 4ms - {answer}"))
    };
    let none = ask("Server returned non-2xx status code: 404 Not Found: ");
    assert_eq!(none.kind, Kind::Denied);
    assert!(none.message.ends_with("no credentials were given, and this host has none of its own"), "{none}");
    assert!(none.remedy.contains("AWS_*"), "{none}");
    for silent in ["no route to host", "Server returned non-2xx status code: 503 Service Unavailable: "] {
        let later = ask(silent);
        assert_eq!(later.kind, Kind::Unavailable, "who does not answer may do so later: {later}");
        assert!(
            later.message.ends_with("nobody to ask for some") && later.remedy.contains("AWS_*"),
            "{later}"
        );
    }
}

#[test]
fn a_text_of_another_form_is_shown_as_it_is_but_not_at_any_length() {
    assert!(told("strange\n  thing").message.ends_with("strange thing"));
    assert!(told(&"long ".repeat(1000)).message.len() < 500);
}

/// As the library below words it.
fn answered(status: &str, code: &str) -> Error {
    told(&format!(
        "Error performing PUT http://h/b/x in 3ms - Server returned non-2xx status code: {status}: \
         <Error><Code>{code}</Code></Error>"
    ))
}

#[test]
fn every_answer_of_a_store_is_final_or_not() {
    let cases = [
        // Credentials, which may be renewed, and rights.
        ("400 Bad Request", "ExpiredToken", Kind::Denied),
        ("400 Bad Request", "InvalidToken", Kind::Denied),
        ("400 Bad Request", "InvalidIdentityToken", Kind::Denied),
        ("403 Forbidden", "AccessDenied", Kind::Denied),
        ("401 Unauthorized", "InvalidAuthenticationInfo", Kind::Denied),
        ("403 Forbidden", "RequestTimeTooSkewed", Kind::Denied),
        ("400 Bad Request", "KMS.DisabledException", Kind::Denied),
        // Our fault, today and tomorrow.
        ("400 Bad Request", "InvalidArgument", Kind::InvalidInput),
        ("400 Bad Request", "AuthorizationHeaderMalformed", Kind::InvalidInput),
        ("411 Length Required", "MissingContentLength", Kind::InvalidInput),
        ("413 Payload Too Large", "EntityTooLarge", Kind::InvalidInput),
        ("501 Not Implemented", "NotImplemented", Kind::InvalidInput),
        ("405 Method Not Allowed", "MethodNotAllowed", Kind::InvalidInput),
        ("403 Forbidden", "InvalidObjectState", Kind::InvalidInput),
        // Room.
        ("403 Forbidden", "QuotaExceeded", Kind::NoSpace),
        ("507 Insufficient Storage", "XMinioStorageFull", Kind::NoSpace),
        // What passes.
        ("408 Request Timeout", "RequestTimeout", Kind::Unavailable),
        ("409 Conflict", "OperationAborted", Kind::Unavailable),
        ("409 Conflict", "ContainerBeingDeleted", Kind::Unavailable),
        ("425 Too Early", "", Kind::Unavailable),
        ("429 Too Many Requests", "SlowDown", Kind::Unavailable),
        ("500 Internal Server Error", "InternalError", Kind::Unavailable),
        ("502 Bad Gateway", "", Kind::Unavailable),
        ("503 Service Unavailable", "SlowDown", Kind::Unavailable),
        ("504 Gateway Timeout", "", Kind::Unavailable),
    ];
    for (status, code, kind) in cases {
        let error = answered(status, code);
        assert_eq!(error.kind, kind, "{status} {code}: {error}");
        assert!(error.is_transient() || !error.remedy.is_empty(), "an operator is told what to do: {error}");
    }
}
