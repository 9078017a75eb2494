//! A `ReadResponse` on the wire without a copy of its frames.
//!
//! `frames` is the message's last field, so a few bytes in front turn the pieces that the broker
//! hands out (slices of mapped segments) into a message that any gRPC client decodes.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use flumen_api::v1;
use flumen_broker::ReadReply;
use flumen_record::ShardIndex;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::response::encode_before;

/// `ReadResponse.frames` in `consumer.proto`.
const FRAMES_FIELD: u32 = 15;
/// A piece up to this size is cheaper to copy than to send as a transport frame of its own.
const COPIED_BYTES: usize = 4 << 10;
/// Room for prefix and numbers in front of the frames.
const FRONT_BYTES: usize = 128;

/// Adds one reply as a gRPC message: a front, then the pieces as they are.
pub(crate) fn reply(shard: ShardIndex, reply: ReadReply, pieces: &mut VecDeque<Bytes>) {
    let frames_bytes: usize = reply.pieces.iter().map(Bytes::len).sum();
    let children = reply.end_of_shard.as_deref().unwrap_or_default();
    let numbers = v1::ReadResponse {
        shard: shard.value(),
        start: reply.start.value(),
        next: reply.next.value(),
        trim_horizon: reply.trim_horizon.value(),
        durable_end: reply.durable_end.value(),
        last_arrival_us: reply.last_arrival.as_micros(),
        end_of_shard: reply.end_of_shard.is_some(),
        children: children.iter().map(|child| child.value()).collect(),
        stream_incarnation: reply.stream.value(),
        frames: Bytes::new(),
    };
    let mut gathered = BytesMut::with_capacity(FRONT_BYTES);
    if frames_bytes == 0 {
        encode_before(&numbers, 0, &mut gathered);
    } else {
        let field_bytes = key_len(FRAMES_FIELD) + encoded_len_varint(frames_bytes as u64);
        encode_before(&numbers, field_bytes + frames_bytes, &mut gathered);
        encode_key(FRAMES_FIELD, WireType::LengthDelimited, &mut gathered);
        encode_varint(frames_bytes as u64, &mut gathered);
    }
    for piece in reply.pieces {
        if piece.len() <= COPIED_BYTES {
            gathered.extend_from_slice(&piece);
        } else {
            if !gathered.is_empty() {
                pieces.push_back(gathered.split().freeze());
            }
            pieces.push_back(piece);
        }
    }
    if !gathered.is_empty() {
        pieces.push_back(gathered.freeze());
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf as _;
    use flumen_record::{SequenceNumber, StreamIncarnation, Timestamp};
    use prost::Message as _;

    use super::*;

    fn check(pieces: Vec<Bytes>, end_of_shard: Option<Vec<ShardIndex>>, sent_pieces: usize) {
        let expected = v1::ReadResponse {
            shard: 7,
            start: 1,
            next: 300,
            trim_horizon: 0,
            durable_end: u64::MAX,
            last_arrival_us: 5,
            end_of_shard: end_of_shard.is_some(),
            children: vec![8, 9],
            stream_incarnation: 6,
            frames: pieces.concat().into(),
        };
        let expected = v1::ReadResponse {
            children: if end_of_shard.is_some() {
                expected.children
            } else {
                Vec::new()
            },
            ..expected
        };
        let mut sent = VecDeque::new();
        let broker_reply = ReadReply {
            stream: StreamIncarnation::new(6),
            pieces,
            start: SequenceNumber::new(1),
            next: SequenceNumber::new(300),
            trim_horizon: SequenceNumber::ZERO,
            durable_end: SequenceNumber::MAX,
            last_arrival: Timestamp::from_micros(5),
            end_of_shard,
        };
        reply(ShardIndex::new(7), broker_reply, &mut sent);
        assert_eq!(sent.len(), sent_pieces);
        let mut wire = Bytes::from(Vec::from(sent).concat());
        let (compressed, length) = (wire.get_u8(), wire.get_u32());
        assert_eq!((compressed, length as usize), (0, wire.len()));
        // Byte for byte what prost writes, so what every client reads.
        assert_eq!(wire, expected.encode_to_vec());
    }

    #[test]
    fn a_reply_in_pieces_is_the_message_prost_would_write() {
        let (small, large) = (Bytes::from(vec![1; 100]), Bytes::from(vec![2; 10_000]));
        let children = Some(vec![ShardIndex::new(8), ShardIndex::new(9)]);
        check(vec![], None, 1);
        check(vec![], children.clone(), 1);
        check(vec![small.clone()], None, 1);
        check(vec![small.clone(), small.clone()], None, 1);
        check(vec![large.clone()], None, 2);
        check(vec![large.clone(), large.clone()], children, 3);
        check(
            vec![small.clone(), large.clone(), small.clone(), large, small],
            None,
            5,
        );
    }

    #[test]
    fn large_pieces_are_not_copied() {
        let large = Bytes::from(vec![2; 10_000]);
        let mut sent = VecDeque::new();
        let broker_reply = ReadReply {
            stream: StreamIncarnation::new(6),
            pieces: vec![large.clone()],
            start: SequenceNumber::ZERO,
            next: SequenceNumber::ZERO,
            trim_horizon: SequenceNumber::ZERO,
            durable_end: SequenceNumber::ZERO,
            last_arrival: Timestamp::ZERO,
            end_of_shard: None,
        };
        reply(ShardIndex::new(0), broker_reply, &mut sent);
        assert!(sent[1].as_ptr() == large.as_ptr());
    }
}
