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
    let error =
        told("Error performing PUT http://169.254.169.254/latest/api/token in 4ms - no route to host");
    assert_eq!(error.kind, Kind::Denied);
    assert!(
        error.message.ends_with("no credentials were given, and this host has none of its own"),
        "{error}"
    );
    assert!(error.remedy.contains("AWS_*"), "{error}");
}

#[test]
fn a_text_of_another_form_is_shown_as_it_is_but_not_at_any_length() {
    assert!(told("strange\n  thing").message.ends_with("strange thing"));
    assert!(told(&"long ".repeat(1000)).message.len() < 500);
}
