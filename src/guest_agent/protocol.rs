//! The agent's protocol: JSON texts, one a line, over a byte stream that outlives those who use it.
//!
//! What an earlier user left unread, or a guest that was reset left half said, may come first. So a conversation begins with
//! a *delimited sync*: the byte 0xFF, which no JSON text has, makes the agent forget a half command; it answers with 0xFF and
//! the number it was given. Everything before that answer is thrown away. Lengths are bounded: the guest is not trusted.

use std::io;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

const DELIMITER: u8 = 0xFF;
/// The longest answer that is read.
const ANSWER_MAX: usize = 64 << 10;
/// The most that is thrown away before the answer to a sync.
const STALE_MAX: usize = 4 << 20;

/// A conversation with an agent. None of its calls has a limit of time; whoever awaits one sets it.
pub struct Agent {
    stream: BufReader<UnixStream>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer<T> {
    Return(T),
    Error { desc: String },
}

impl Agent {
    /// Connects and makes sure that the agent is there.
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        let mut agent = Self { stream: BufReader::new(UnixStream::connect(socket).await?) };
        agent.sync().await?;
        let IgnoredAny = agent.ask("guest-ping").await?;
        Ok(agent)
    }

    /// Throws away what is left of earlier conversations.
    pub async fn sync(&mut self) -> io::Result<()> {
        let id = u64::from(uuid::Uuid::new_v4().as_fields().0);
        let command = serde_json::json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
        self.stream.write_all(&[DELIMITER]).await?;
        self.stream.write_all(format!("{command}\n").as_bytes()).await?;
        let mut budget = STALE_MAX;
        loop {
            budget = budget.saturating_sub(self.read_to(DELIMITER, budget).await?.len());
            let line = self.read_to(b'\n', ANSWER_MAX).await?;
            // The answer to an earlier user's sync, or worse.
            if let Ok(Answer::Return(found)) = serde_json::from_slice::<Answer<u64>>(&line)
                && found == id
            {
                return Ok(());
            }
        }
    }

    /// Whether the guest says that its file systems are frozen.
    pub async fn is_frozen(&mut self) -> io::Result<bool> {
        Ok(self.ask::<String>("guest-fsfreeze-status").await? == "frozen")
    }

    /// Freezes them; how many.
    pub async fn freeze(&mut self) -> io::Result<u64> {
        self.ask("guest-fsfreeze-freeze").await
    }

    /// Thaws them; how many.
    pub async fn thaw(&mut self) -> io::Result<u64> {
        self.ask("guest-fsfreeze-thaw").await
    }

    async fn ask<T: DeserializeOwned>(&mut self, command: &str) -> io::Result<T> {
        let text = format!("{}\n", serde_json::json!({ "execute": command }));
        self.stream.write_all(text.as_bytes()).await?;
        let line = self.read_to(b'\n', ANSWER_MAX).await?;
        match serde_json::from_slice(&line) {
            Ok(Answer::Return(value)) => Ok(value),
            Ok(Answer::Error { desc }) => Err(io::Error::other(format!("{command}: {desc}"))),
            Err(error) => Err(io::Error::other(format!("{command} was answered by something else: {error}"))),
        }
    }

    /// Reads up to `end`, which is consumed and not returned; at most `limit` bytes.
    async fn read_to(&mut self, end: u8, limit: usize) -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        loop {
            let buffer = self.stream.fill_buf().await?;
            if buffer.is_empty() {
                return Err(io::Error::other("the guest agent's socket was closed"));
            }
            let found = buffer.iter().position(|byte| *byte == end);
            let len = found.unwrap_or(buffer.len());
            read.extend_from_slice(&buffer[..len]);
            self.stream.consume(len + usize::from(found.is_some()));
            if found.is_some() {
                return Ok(read);
            }
            if read.len() > limit {
                return Err(io::Error::other("the guest agent says more than any answer has"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
