//! Every way of cutting messages into frames gives the same messages.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::task::Waker;

use bytes::BufMut;
use http_body::Frame;

use super::*;

struct Frames(VecDeque<Bytes>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
    }
}

fn read(frames: Vec<Bytes>, limit: usize) -> (Vec<Bytes>, Option<CallError>) {
    let mut messages = Messages::new(Frames(frames.into()), limit);
    let mut read = Vec::new();
    loop {
        match messages.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(message))) => read.push(message),
            Poll::Ready(Some(Err(error))) => return (read, Some(error)),
            Poll::Ready(None) => return (read, None),
            Poll::Pending => panic!("these frames are all there"),
        }
    }
}

fn wire(messages: &[&[u8]]) -> Bytes {
    let mut wire = BytesMut::new();
    for message in messages {
        wire.put_u8(0);
        wire.put_u32(message.len().try_into().unwrap());
        wire.put_slice(message);
    }
    wire.freeze()
}

#[test]
fn messages_survive_every_cut_into_three_frames() {
    let messages: [&[u8]; 4] = [b"one", b"", b"three", b"4"];
    let wire = wire(&messages);
    for first in 0..=wire.len() {
        for second in first..=wire.len() {
            let frames = vec![
                wire.slice(..first),
                wire.slice(first..second),
                wire.slice(second..),
            ];
            let (read, error) = read(frames, 5);
            assert_eq!(error, None);
            assert_eq!(read, messages, "cut at {first} and {second}");
        }
    }
}

#[test]
fn a_message_within_a_frame_is_not_copied() {
    let wire = wire(&[b"first", b"second"]);
    let (read, _) = read(vec![wire.clone()], 100);
    assert!(read[1].as_ptr() == wire[15..].as_ptr());
}

#[test]
fn a_request_that_ends_inside_a_message_is_refused() {
    let wire = wire(&[b"whole", b"cut short"]);
    for end in 11..wire.len() {
        let (read, error) = read(vec![wire.slice(..end)], 100);
        assert_eq!(read, [&b"whole"[..]]);
        let (needed, found) = if end < 15 {
            (5, end - 10)
        } else {
            (9, end - 15)
        };
        let expected = CallError::MessageCut {
            needed,
            found: found as u64,
        };
        assert_eq!(error, Some(expected), "end at {end}");
    }
}

#[test]
fn a_large_length_is_refused_before_its_bytes_come() {
    let prefix = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]);
    let (read, error) = read(vec![prefix], 1 << 20);
    assert!(read.is_empty());
    assert_eq!(
        error,
        Some(CallError::MessageTooLarge {
            bytes: u64::from(u32::MAX),
            limit: 1 << 20
        })
    );
}

#[test]
fn a_compressed_message_is_refused() {
    let (_, error) = read(vec![Bytes::from_static(&[1, 0, 0, 0, 0])], 100);
    assert_eq!(error, Some(CallError::Compressed));
}
