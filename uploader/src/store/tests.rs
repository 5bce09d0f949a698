use std::collections::BTreeMap;
use std::path::PathBuf;

use object_store::memory::InMemory;

use super::*;
use crate::vault::{Protection, Vault};

/// The behaviour that everything above relies on, for every kind of store.
async fn conforms(store: &Store) {
    let key = "machines/m/line/00000000000000000001";
    let missing = store.get(key, 100).await.unwrap_err();
    assert!(is_missing_object(&missing), "{missing:?}");
    assert!(missing.object.ends_with(key), "{missing:?}");
    assert!(store.list("machines/m/line").await.unwrap().is_empty());
    assert!(store.list_folders("machines").await.unwrap().is_empty());

    store.create(key, Bytes::from_static(b"0123456789").into()).await.unwrap();
    let again = store.create(key, Bytes::from_static(b"other").into()).await.unwrap_err();
    assert_eq!(again.kind, Kind::Exists);
    assert_eq!(store.get(key, 100).await.unwrap().as_ref(), b"0123456789");
    assert_eq!(store.get(key, 9).await.unwrap_err().kind, Kind::Corrupt);
    assert_eq!(store.get_range(key, 2..5).await.unwrap().as_ref(), b"234");
    assert!(store.get_range(key, 5..5).await.unwrap().is_empty());
    assert_eq!(store.get_start(key, 4).await.unwrap().as_ref(), b"0123");
    assert_eq!(store.get_start(key, 4000).await.unwrap().as_ref(), b"0123456789");
    for beyond in [8..20, 10..12, 50..60] {
        let short = store.get_range(key, beyond.clone()).await.unwrap_err();
        assert_eq!(short.kind, Kind::Corrupt, "{beyond:?}: {short:?}");
    }

    let other = "machines/m/line/00000000000000000002";
    store.put(other, Bytes::from_static(b"x").into()).await.unwrap();
    store.put(other, Bytes::from_static(b"xy").into()).await.unwrap();
    store.put("machines/n/line/00000000000000000001", Bytes::new().into()).await.unwrap();
    let listed = store.list("machines/m/line").await.unwrap();
    let seen: Vec<_> = listed.iter().map(|object| (object.key.as_str(), object.size)).collect();
    assert_eq!(seen, [(key, 10), (other, 2)]);
    assert_eq!(store.describe(other).await.unwrap().modified, listed[1].modified);
    let now = jiff::Timestamp::now();
    assert!(
        listed.iter().all(|object| now.duration_since(object.modified).abs().as_secs() < 600),
        "{listed:?}"
    );
    assert_eq!(store.list_folders("machines").await.unwrap(), ["m", "n"]);
    store.delete(key).await.unwrap();
    store.delete(key).await.unwrap();
    assert!(is_missing_object(&store.get(key, 100).await.unwrap_err()));
}

#[tokio::test]
async fn a_store_in_memory_conforms() {
    conforms(&Store::new(Arc::new(InMemory::new()), "memory://test")).await;
}

#[tokio::test]
async fn a_folder_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        StoreConfig { url: format!("file://{}/vault", dir.path().display()), ..StoreConfig::default() };
    assert_eq!(open(&config, false).unwrap_err().kind, Kind::NotFound);
    conforms(&open(&config, true).unwrap()).await;
    assert!(dir.path().join("vault/machines/n").is_dir());
}

#[test]
fn machines_that_begin_together_make_one_vault() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..50 {
        let url = format!("file://{}/vault-{round}", dir.path().display());
        let config = StoreConfig { url, ..StoreConfig::default() };
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    open(&config, true).unwrap();
                });
            }
        });
    }
}

/// Runs against any store that the variable names, for example an S3 server: `URL` and then `name=value` options, with
/// blanks between.
#[tokio::test]
async fn a_store_named_from_outside_conforms() {
    let Ok(named) = std::env::var("LIFEBOAT_TEST_STORE") else { return };
    let mut words = named.split_whitespace();
    let url = format!("{}/{}", words.next().unwrap(), uuid::Uuid::new_v4());
    let options = words.map(|word| word.split_once('=').unwrap());
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let config = StoreConfig { url, options, ..StoreConfig::default() };
    conforms(&open(&config, true).unwrap()).await;

    let (scheme, _) = config.url.split_once("://").unwrap();
    let missing = StoreConfig { url: format!("{scheme}://no-such-place/x"), ..config.clone() };
    let store = open(&missing, true).unwrap();
    // Servers answer a write there in several ways; every vault is read before it is written.
    for error in [
        store.get("k", 10).await.unwrap_err(),
        store.list("k").await.unwrap_err(),
        Vault::at(store.clone(), None).await.unwrap_err(),
        Vault::at_or_create(store.clone(), &Protection::None).await.unwrap_err(),
    ] {
        assert_eq!((error.kind, error.object.as_str()), (Kind::NotFound, store.url()), "{error}");
        assert!(error.remedy.contains("create the bucket or container"), "{error}");
    }

    let Some(key) = config.options.keys().find(|name| name.ends_with("account_key")).cloned() else { return };
    let mut wrong = config;
    wrong.options.insert(key, "bm90IHRoZSBrZXk=".to_owned());
    let error = open(&wrong, true).unwrap().get("k", 10).await.unwrap_err();
    assert_eq!(error.kind, Kind::Denied, "{error}");
    assert!(error.remedy.contains("credentials"), "{error}");
}

#[tokio::test]
async fn requests_are_counted_apart() {
    let store = Store::new(Arc::new(InMemory::new()), "memory://test");
    let other = store.counted_apart();
    store.put("a", Bytes::from_static(b"123").into()).await.unwrap();
    store.get("a", 10).await.unwrap();
    store.list("x").await.unwrap();
    let counts = store.counts();
    assert_eq!(counts, Counts { puts: 1, gets: 1, lists: 1, bytes_up: 3, bytes_down: 3 });
    assert_eq!(other.counts(), Counts::default());
    store.clone().get("a", 10).await.unwrap();
    assert_eq!(store.counts().since(counts).gets, 1);
}

fn config(url: &str, options: &[(&str, &str)]) -> StoreConfig {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let options: BTreeMap<_, _> = options.iter().map(own).collect();
    StoreConfig { url: url.to_owned(), options, ..StoreConfig::default() }
}

const KEYS: [(&str, &str); 2] = [("aws_access_key_id", "a"), ("aws_secret_access_key", "b")];

#[test]
fn bad_vault_urls_and_options_are_refused_by_name() {
    for (url, options) in [
        ("ftp://host/x", &[][..]),
        ("file://relative/path", &[]),
        ("nonsense", &[]),
        ("s3://", &KEYS),
        ("azure:///prefix", &[]),
        ("s3://bucket", &[("aws_acess_key_id", "typo")]),
        ("azure://container", &[("account_nmae", "typo")]),
        ("azure://container", &[("azure_storage_connection_string", "nonsense")]),
        ("s3://bucket", &[("endpoint", "http://s3.example.org:9000")]),
        ("azure://container", &[("azure_storage_endpoint", "http://10.1.2.3:10000/a")]),
    ] {
        let error = open(&config(url, options), false).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidInput, "{url}: {error}");
    }
}

#[test]
fn plain_http_goes_to_this_host_or_where_it_is_allowed() {
    for endpoint in
        ["http://127.0.0.1:8333", "http://localhost:9000/", "http://[::1]:9000", "https://s3.example.org"]
    {
        let options = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL", endpoint)];
        open(&config("s3://bucket/prefix", &options), false).unwrap();
    }
    let mut remote = config("s3://bucket", &[KEYS[0], KEYS[1], ("endpoint", "http://s3.example.org:9000")]);
    let refused = open(&remote, false).unwrap_err();
    assert!(refused.remedy.contains("allow_http"), "{refused}");
    remote.allow_http = true;
    open(&remote, false).unwrap();
}

#[test]
fn the_usual_variables_of_both_clouds_are_understood() {
    let both = [
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_PROFILE", "c"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "devstoreaccount1"),
        ("AZURE_STORAGE_ACCOUNT_KEY", "a2V5"),
        ("AZURE_CONFIG_DIR", "d"),
    ];
    open(&config("s3://bucket", &both), false).unwrap();
    open(&config("azure://container/prefix", &both), false).unwrap();
    let string = "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey=a2V5;\
        BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1;";
    open(&config("azure://container", &[("AZURE_STORAGE_CONNECTION_STRING", string)]), false).unwrap();
}

#[test]
fn a_missing_or_wrong_ca_file_is_named() {
    let mut config = config("s3://bucket", &KEYS);
    config.ca_file = Some(PathBuf::from("/nowhere/ca.pem"));
    let error = open(&config, false).unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::NotFound, "/nowhere/ca.pem"));
    let empty = tempfile::NamedTempFile::new().unwrap();
    config.ca_file = Some(empty.path().to_owned());
    assert_eq!(open(&config, false).unwrap_err().kind, Kind::InvalidInput);
}

#[test]
fn secrets_are_not_printed() {
    let text = format!("{:?}", config("s3://bucket", &[("aws_secret_access_key", "hunter2")]));
    assert!(!text.contains("hunter2") && text.contains("aws_secret_access_key"), "{text}");
}

#[tokio::test]
async fn a_store_that_nobody_serves_is_unavailable_and_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let options = [KEYS[0], KEYS[1], ("endpoint", endpoint.as_str())];
    let error = open(&config("s3://bucket", &options), false).unwrap().get("k", 1).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable, "{error}");
    assert!(error.is_transient() && error.object.contains("s3://bucket/k"), "{error}");
    assert!(error.message.contains("127.0.0.1"), "{error}");
}

#[test]
fn the_store_s_words_become_kinds() {
    use object_store::Error as E;
    let generic = |text: &str| E::Generic { store: "S3", source: text.to_owned().into() };
    let missing = |text: &str| E::NotFound { path: "k".to_owned(), source: text.to_owned().into() };
    let cases = [
        (missing("<Code>NoSuchBucket</Code><Message>no bucket</Message>"), Kind::NotFound, "u"),
        (missing("404 <Code>ContainerNotFound</Code>"), Kind::NotFound, "u"),
        (missing("<Code>NoSuchKey</Code>"), Kind::NotFound, "u/k"),
        (E::PermissionDenied { path: "k".into(), source: "x".into() }, Kind::Denied, "u/k"),
        (E::Unauthenticated { path: "k".into(), source: "x".into() }, Kind::Denied, "u/k"),
        (E::Precondition { path: "k".into(), source: "x".into() }, Kind::Exists, "u/k"),
        (generic("invalid peer certificate: UnknownIssuer"), Kind::Denied, "u/k"),
        (generic("503 Service Unavailable: SlowDown"), Kind::Unavailable, "u/k"),
        (generic("416 Range Not Satisfiable"), Kind::Corrupt, "u/k"),
        (generic("400: AuthorizationHeaderMalformed"), Kind::InvalidInput, "u/k"),
    ];
    for (error, kind, object) in cases {
        let text = error.to_string();
        let translated = errors::translate("read", "u", "u/k", error);
        assert_eq!((translated.kind, translated.object.as_str()), (kind, object), "{text}");
        let bare = matches!(kind, Kind::Unavailable | Kind::Exists)
            || translated.message.ends_with(errors::NO_SUCH_OBJECT);
        assert!(bare || !translated.remedy.is_empty(), "no remedy for {text}");
    }
}
