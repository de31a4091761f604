//! Varlink's wire format: JSON objects, each ended by a NUL. The only file that knows it.
//!
//! Knows bytes and messages, of both sides: the daemon decodes requests and encodes replies,
//! `echoctl` does the reverse. Never reads or writes anything itself, and never holds more
//! than one message of the largest size that is allowed.

use std::ops::Not;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The most that a request may have, in bytes, without its NUL. The longest sensible one has
/// some hundred; what is larger is not meant for us.
pub(crate) const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// The most that `echoctl` takes as one reply, in bytes: a page of 256 peers has about 100 KiB,
/// and a configuration may be long.
pub(crate) const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The named values of a request or a reply.
pub(crate) type Parameters = Map<String, Value>;

/// Cuts a stream of bytes into messages.
#[derive(Debug)]
pub(crate) struct Frames {
    /// Bytes that are received and not yet taken: `len_max` and a NUL at most.
    held: Vec<u8>,
    /// The number of bytes of `held` that are known to be no NUL.
    searched: usize,
    len_max: usize,
}

/// A message is longer than it may be; nothing after it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of more than {len_max} bytes")]
pub(crate) struct TooLong {
    /// The number of bytes that is allowed.
    pub len_max: usize,
}

impl Frames {
    /// For messages of at most `len_max` bytes.
    #[must_use]
    pub(crate) fn new(len_max: usize) -> Self {
        Self {
            held: Vec::new(),
            searched: 0,
            len_max,
        }
    }

    /// Continues with what another had [held](Self::held), however much that is.
    #[must_use]
    pub(crate) fn resume(len_max: usize, held: Vec<u8>) -> Self {
        Self {
            held,
            ..Self::new(len_max)
        }
    }

    /// How many bytes can be pushed now. Zero until a message is taken, when one is complete
    /// or too long.
    #[must_use]
    pub(crate) fn room(&self) -> usize {
        (self.len_max + 1).saturating_sub(self.held.len())
    }

    /// Bytes that are received and not yet taken.
    #[must_use]
    pub(crate) fn held(&self) -> &[u8] {
        &self.held
    }

    /// Takes as many of these bytes as there is room for, and returns their number.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.held.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// The next message, without its NUL, when it is complete.
    ///
    /// # Errors
    ///
    /// [`TooLong`], from then on.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let fresh = &self.held[self.searched..];
        let Some(nul) = fresh.iter().position(|&byte| byte == 0) else {
            self.searched = self.held.len();
            let len_max = self.len_max;
            return if self.room() == 0 {
                Err(TooLong { len_max })
            } else {
                Ok(None)
            };
        };
        let mut frame: Vec<u8> = self.held.drain(..=self.searched + nul).collect();
        frame.pop();
        self.searched = 0;
        if self.held.is_empty() {
            // Most clients ask once in a while; what a large request needed is not kept.
            self.held = Vec::new();
        }
        Ok(Some(frame))
    }
}

/// Not a message: the bytes are not JSON, or not of Varlink's shape.
#[derive(Debug, thiserror::Error)]
#[error("not a Varlink message: {0}")]
pub(crate) struct Malformed(#[from] serde_json::Error);

/// A call of a method.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Interface and name, for example `io.echod.Control.GetStatus`.
    pub method: String,
    /// `null` is the same as nothing: `varlink-cli` sends it.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub parameters: Parameters,
    /// The caller takes several replies.
    #[serde(default, deserialize_with = "absent_if_null")]
    #[serde(skip_serializing_if = "Not::not")]
    pub more: bool,
    /// The caller wants no reply.
    #[serde(default, deserialize_with = "absent_if_null")]
    #[serde(skip_serializing_if = "Not::not")]
    pub oneway: bool,
    /// The caller wants to speak another protocol after this; no method of ours allows it.
    #[serde(default, deserialize_with = "absent_if_null")]
    #[serde(skip_serializing_if = "Not::not")]
    pub upgrade: bool,
}

impl Request {
    /// Reads one message.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: after it, a client cannot be relied on to mean what it sends.
    pub(crate) fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        Ok(serde_json::from_slice(frame)?)
    }

    /// The message, with its NUL.
    #[must_use]
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

/// The answer to a call: the values asked for, or an error with its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply {
    /// The error's full name; absent when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the method returns, or what belongs to the error.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub parameters: Parameters,
    /// Another reply to the same call follows.
    #[serde(default, deserialize_with = "absent_if_null")]
    #[serde(skip_serializing_if = "Not::not")]
    pub continues: bool,
}

impl Reply {
    /// The one reply to a call, or the last.
    #[must_use]
    pub(crate) fn done(parameters: Parameters) -> Self {
        Self {
            parameters,
            ..Self::default()
        }
    }

    /// The call could not be done.
    #[must_use]
    pub(crate) fn error(name: &str, parameters: Parameters) -> Self {
        Self {
            error: Some(name.to_owned()),
            parameters,
            ..Self::default()
        }
    }

    /// Reads one message.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: the other side does not speak Varlink.
    pub(crate) fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        Ok(serde_json::from_slice(frame)?)
    }

    /// The message, with its NUL.
    #[must_use]
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(message).expect("strings and JSON values become JSON");
    bytes.push(0);
    bytes
}

fn absent_if_null<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parameters(value: Value) -> Parameters {
        match value {
            Value::Object(parameters) => parameters,
            other => panic!("{other} is no object"),
        }
    }

    /// All messages of these chunks, and how it ended.
    fn decode(len_max: usize, chunks: &[&[u8]]) -> (Vec<Vec<u8>>, Option<TooLong>) {
        let mut frames = Frames::new(len_max);
        let mut taken = Vec::new();
        for chunk in chunks {
            let mut rest = *chunk;
            loop {
                let pushed = frames.push(rest);
                rest = &rest[pushed..];
                assert!(frames.held.len() <= len_max + 1, "no more is held");
                match frames.next_frame() {
                    Ok(Some(frame)) => taken.push(frame),
                    Ok(None) if rest.is_empty() => break,
                    Ok(None) => {}
                    Err(error) => return (taken, Some(error)),
                }
            }
        }
        (taken, None)
    }

    #[test]
    fn a_message_is_complete_at_its_nul() {
        let (frames, end) = decode(10, &[b"one", b"\0tw", b"o\0\0thr"]);
        assert_eq!(frames, [b"one".to_vec(), b"two".to_vec(), b"".to_vec()]);
        assert_eq!(end, None);
    }

    #[test]
    fn the_longest_message_passes_and_a_longer_one_does_not() {
        let mut longest = vec![b'x'; REQUEST_BYTES_MAX];
        longest.push(0);
        let (frames, end) = decode(REQUEST_BYTES_MAX, &[&longest]);
        assert_eq!((frames.len(), end), (1, None));
        longest.insert(0, b'x');
        let (frames, end) = decode(REQUEST_BYTES_MAX, &[&longest]);
        let len_max = REQUEST_BYTES_MAX;
        assert_eq!((frames.len(), end), (0, Some(TooLong { len_max })));
    }

    #[test]
    fn null_is_the_same_as_absent() {
        let text = br#"{"method":"a.B","parameters":null,"more":null,"oneway":null}"#;
        let request = Request {
            method: "a.B".to_owned(),
            ..Request::default()
        };
        assert_eq!(Request::decode(text).unwrap(), request);
        let reply = Reply::decode(br#"{"parameters":null,"error":null,"continues":null}"#).unwrap();
        assert_eq!(reply, Reply::default());
    }

    #[test]
    fn rubbish_is_refused() {
        for text in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"method":7}"#,
            r#"{"method":"a.B","parameters":[]}"#,
            r#"{"method":"a.B","more":"yes"}"#,
            r#"{"method":"a.B"} {"#,
        ] {
            assert!(Request::decode(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Request::decode(b"{\"method\":\"\xff\"}").is_err());
    }

    #[test]
    fn nesting_without_end_is_refused() {
        let text = format!("{{\"method\":\"a.B\",\"parameters\":{}", "[".repeat(60_000));
        assert!(Request::decode(text.as_bytes()).is_err());
    }

    #[test]
    fn messages_look_as_varlink_wants_them() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let some = parameters(json!({"a": 1}));
        let reply = Reply {
            continues: true,
            ..Reply::done(some.clone())
        };
        let expected = "{\"parameters\":{\"a\":1},\"continues\":true}\0";
        assert_eq!(text(reply.encode()), expected);
        let reply = Reply::error("a.B", some);
        let expected = "{\"error\":\"a.B\",\"parameters\":{\"a\":1}}\0";
        assert_eq!(text(reply.encode()), expected);
        let reply = Reply::done(Parameters::new());
        assert_eq!(text(reply.encode()), "{\"parameters\":{}}\0");
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_chunks_are_survived_and_cut_alike(
            bytes in prop::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(0)], 0..300),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut start = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                chunks.push(&bytes[start..cut]);
                start = cut;
            }
            let whole = decode(40, &[&bytes]);
            for frame in &whole.0 {
                let _ = Request::decode(frame);
                let _ = Reply::decode(frame);
            }
            prop_assert_eq!(decode(40, &chunks), whole);
        }

        #[test]
        fn what_was_encoded_is_decoded_as_it_was(
            name in any::<String>(), value in json_value(),
            more in any::<bool>(), oneway in any::<bool>(),
        ) {
            let parameters = Parameters::from_iter([(name.clone(), value)]);
            let request = Request { method: name, parameters, more, oneway, upgrade: false };
            let (frames, _) = decode(REQUEST_BYTES_MAX, &[&request.encode()]);
            prop_assert_eq!(frames.len(), 1);
            prop_assert_eq!(Request::decode(&frames[0]).unwrap(), request);
        }
    }
}
