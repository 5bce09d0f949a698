//! Whatever stands in the stream, an answer is to the question that was asked, or there is none.

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;

use super::*;

/// An agent that has `stale` in its stream and answers `answers` after the sync, if it syncs.
async fn meet(stale: Vec<u8>, answers: &'static [u8], syncs: bool) -> io::Result<Agent> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let len = stream.read(&mut asked[..1]).await.unwrap() + stream.read(&mut asked[1..]).await.unwrap();
        assert_eq!(asked[0], DELIMITER, "it makes the agent forget a half command");
        let asked: serde_json::Value = serde_json::from_slice(&asked[1..len]).unwrap();
        let mut said = stale;
        if syncs {
            said.push(DELIMITER);
            said.extend(format!("{{\"return\": {}}}\n", asked["arguments"]["id"]).as_bytes());
            said.extend(answers);
        }
        let _ = stream.write_all(&said).await;
        // It says no more, and still listens: closed at once, it might be gone before it is asked.
        let _ = stream.shutdown().await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    });
    Agent::connect(&path).await
}

#[tokio::test]
async fn what_was_left_in_the_stream_is_thrown_away() {
    let mut stale = b"{\"return\": 7}\n{\"ret".to_vec();
    stale.extend([DELIMITER, b'x', b'\n', DELIMITER]);
    stale.extend(b"{\"return\": 1}\n\0\0 garbage {\"error\": {\"desc\": \"no\"}}\n");
    let answers = b"{\"return\": {}}\n{\"return\": \"frozen\"}\n{\"return\": 3}\n";
    let mut agent = meet(stale, answers, true).await.unwrap();
    assert!(agent.is_frozen().await.unwrap());
    assert_eq!(agent.thaw().await.unwrap(), 3);
    let closed = agent.thaw().await.unwrap_err();
    assert!(closed.to_string().contains("closed"), "{closed}");
}

#[tokio::test]
async fn an_error_keeps_the_agents_words() {
    let answers =
        b"{\"return\": {}}\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"disabled\"}}\n[]\n";
    let mut agent = meet(Vec::new(), answers, true).await.unwrap();
    assert_eq!(agent.freeze().await.unwrap_err().to_string(), "guest-fsfreeze-freeze: disabled");
    assert!(agent.freeze().await.unwrap_err().to_string().contains("something else"));
}

#[tokio::test]
async fn a_guest_that_never_stops_talking_is_given_up() {
    let endless = meet(vec![b' '; STALE_MAX + (1 << 20)], b"", false).await.err().unwrap();
    assert!(endless.to_string().contains("more than any answer"), "{endless}");
}
