//! Every RPC over real sockets: one success and one refusal each. An RPC without a case fails.

use bytes::Bytes;
use flumen_api::v1;
use flumen_api::v1::group_request::Request;
use flumen_api::v1::group_response::Response;
use flumen_api::v1::start_position::{Newest, Oldest, Position};
use flumen_record::Frames;
use prost::Message as _;
use tonic::Code::{
    AlreadyExists, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound,
    ResourceExhausted, Unavailable, Unimplemented,
};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::delivery_rpcs as delivery;
use crate::group_wire::{Member, join};
use crate::process::BrokerProcess;
use crate::wire::{Refused, Wire, batch, message};

/// A broker with a stream of two shards, three records in the first.
pub(crate) struct Stage {
    pub(crate) broker: BrokerProcess,
    pub(crate) wire: Wire,
    pub(crate) dir: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn set() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker = BrokerProcess::start(&dir.path().join("data"));
        let wire = Wire::to(&broker.endpoint);
        let stage = Self { broker, wire, dir };
        stage.create("there", 2);
        let (acks, ended) = stage.wire.append(
            "there",
            vec![(0, batch(0, 0, 0, &[b"a", b"b", b"c"]).bytes().clone())],
        );
        assert!(ended.is_ok() && acks[0].refusal.is_none(), "{acks:?}");
        stage
    }

    fn create(&self, stream: &str, shards: u32) -> v1::Stream {
        let request = v1::CreateStreamRequest {
            stream: stream.to_owned(),
            shards,
            ..Default::default()
        };
        let created = self.wire.good(self.wire.admin().create_stream(request));
        created.stream.expect("a stream")
    }
}

impl Stage {
    fn groups(
        &self,
        stream: &str,
        after: &str,
        limit: u32,
    ) -> Result<v1::ListGroupsResponse, tonic::Status> {
        let (stream, after) = (stream.to_owned(), after.to_owned());
        let request = v1::ListGroupsRequest {
            stream,
            after,
            limit,
            stream_incarnation: 0,
        };
        let answer = self.wire.wait(self.wire.admin().list_groups(request));
        answer.map(tonic::Response::into_inner)
    }

    fn describe(
        &self,
        stream: &str,
        group: &str,
    ) -> Result<v1::DescribeGroupResponse, tonic::Status> {
        let (stream, group) = (stream.to_owned(), group.to_owned());
        let request = v1::DescribeGroupRequest {
            stream,
            group,
            stream_incarnation: 0,
        };
        let answer = self.wire.wait(self.wire.admin().describe_group(request));
        answer.map(tonic::Response::into_inner)
    }

    /// Of the stream `there`.
    async fn delete(
        &self,
        group: &str,
        force: bool,
    ) -> Result<tonic::Response<v1::DeleteGroupResponse>, tonic::Status> {
        let (stream, group) = ("there".to_owned(), group.to_owned());
        let request = v1::DeleteGroupRequest {
            stream,
            group,
            force,
            stream_incarnation: 0,
        };
        self.wire.admin().delete_group(request).await
    }
}

/// A reset of all shards.
fn to(stream: &str, group: &str, to: Position) -> v1::ResetGroupRequest {
    v1::ResetGroupRequest {
        stream: stream.to_owned(),
        group: group.to_owned(),
        to: position(to),
        ..Default::default()
    }
}

fn position(position: Position) -> Option<v1::StartPosition> {
    Some(v1::StartPosition {
        position: Some(position),
    })
}

fn record(key: &str, data: &'static [u8]) -> v1::PutRecord {
    v1::PutRecord {
        partition_key: key.to_owned(),
        data: data.into(),
        ..Default::default()
    }
}

/// The data of all records in a reply.
fn data(reply: &v1::ReadResponse) -> Vec<Bytes> {
    let frames = Frames::new(reply.frames.clone());
    let batches = frames.map(|frame| frame.expect("a frame").batch);
    let records = batches.flat_map(|batch| batch.records());
    records
        .map(|record| record.expect("a record").data)
        .collect()
}

/// Reflection, of one of the two packages that have it: they differ in nothing else.
macro_rules! reflection {
    ($version:ident) => {
        pub(super) mod $version {
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

            use crate::wire::{Refused, Wire};

            #[expect(clippy::result_large_err, reason = "a test's refusal holds everything")]
            fn ask(wire: &Wire, question: MessageRequest) -> Result<MessageResponse, Refused> {
                let request = ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(question),
                };
                let mut client = ServerReflectionClient::new(wire.channel());
                let questions = tokio_stream::iter([request]);
                let mut answers = wire.good(client.server_reflection_info(questions));
                let answer = wire.wait(answers.message());
                let answer = answer.map_err(|status| Refused::from(&status))?;
                Ok(answer
                    .and_then(|it| it.message_response)
                    .expect("an answer"))
            }

            /// The services that the server says it has, and the files of this symbol.
            pub(in super::super) fn good(wire: &Wire, symbol: &str) -> (Vec<String>, Vec<Vec<u8>>) {
                let services = match ask(wire, MessageRequest::ListServices(String::new())) {
                    Ok(MessageResponse::ListServicesResponse(list)) => list.service,
                    other => panic!("{other:?}"),
                };
                let question = MessageRequest::FileContainingSymbol(symbol.to_owned());
                let files = match ask(wire, question) {
                    Ok(MessageResponse::FileDescriptorResponse(files)) => files,
                    other => panic!("{other:?}"),
                };
                let names = services.into_iter().map(|service| service.name);
                (names.collect(), files.file_descriptor_proto)
            }

            pub(in super::super) fn refused(wire: &Wire, symbol: &str) -> Refused {
                let question = MessageRequest::FileContainingSymbol(symbol.to_owned());
                ask(wire, question).expect_err("a refusal")
            }
        }
    };
}

mod reflection {
    reflection!(v1);
    reflection!(v1alpha);
}

/// Reflection names every service that is there, and describes what it is asked about.
fn describes_itself((services, files): (Vec<String>, Vec<Vec<u8>>)) {
    for (rpc, _) in CASES.iter().filter_map(|case| case.rpc.split_once('/')) {
        // It does not describe itself.
        if !rpc.starts_with("grpc.reflection") {
            assert!(
                services.iter().any(|name| name == rpc),
                "{rpc}: {services:?}"
            );
        }
    }
    let file = prost_types::FileDescriptorProto::decode(&*files[0]).expect("a file");
    assert_eq!(file.service[0].name(), "Producer");
}

fn health_of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

fn status_of(response: HealthCheckResponse) -> ServingStatus {
    response.status()
}

struct Case {
    rpc: &'static str,
    good: fn(&Stage),
    refused: fn(&Stage),
}

const CASES: &[Case] = &[
    Case {
        rpc: "flumen.v1.Admin/CreateStream",
        good: |stage| {
            let made = stage.create("made", 3);
            assert_eq!((&*made.name, made.shards.len()), ("made", 3));
            assert_eq!(made.durability(), v1::Durability::Disk);
            assert_eq!(made.retention_us, 168 * 3_600_000_000);
        },
        refused: |stage| {
            let create = |request| {
                stage
                    .wire
                    .refused(stage.wire.admin().create_stream(request))
            };
            let named = |stream: &str| v1::CreateStreamRequest {
                stream: stream.to_owned(),
                ..Default::default()
            };
            create(named("there")).says(AlreadyExists, "STREAM_EXISTS", &[("stream", "there")]);
            create(named("")).says(InvalidArgument, "FIELD_MISSING", &[("field", "stream")]);
            let named_so = [("field", "stream"), ("value", "a/b")];
            create(named("a/b")).says(InvalidArgument, "STREAM_NAME_INVALID", &named_so);
            let level = v1::CreateStreamRequest {
                durability: 9,
                ..named("new")
            };
            let level_so = [("field", "durability"), ("value", "9")];
            create(level).says(InvalidArgument, "DURABILITY_INVALID", &level_so);
            let wide = v1::CreateStreamRequest {
                shards: 10_001,
                ..named("new")
            };
            let bounds = [("value", "10001"), ("min", "1"), ("max", "10000")];
            create(wide).says(InvalidArgument, "OUT_OF_BOUNDS", &bounds);
        },
    },
    Case {
        rpc: "flumen.v1.Admin/DescribeStream",
        good: |stage| {
            let stream = "there".to_owned();
            let request = v1::DescribeStreamRequest { stream };
            let described = stage.wire.good(stage.wire.admin().describe_stream(request));
            let shards = described.stream.expect("a stream").shards;
            let ends: Vec<_> = shards.iter().map(|shard| shard.durable_end).collect();
            assert_eq!(ends[0], 3, "{shards:?}");
        },
        refused: |stage| {
            let stream = "missing".to_owned();
            let request = v1::DescribeStreamRequest { stream };
            let refused = stage
                .wire
                .refused(stage.wire.admin().describe_stream(request));
            refused.says(NotFound, "STREAM_NOT_FOUND", &[("stream", "missing")]);
        },
    },
    Case {
        rpc: "flumen.v1.Admin/ListStreams",
        good: |stage| {
            stage.create("zz-last", 1);
            let page = |after: &str, limit| {
                let after = after.to_owned();
                let request = v1::ListStreamsRequest { after, limit };
                stage.wire.good(stage.wire.admin().list_streams(request))
            };
            let first = page("", 1);
            assert!(first.more && first.streams.len() == 1, "{first:?}");
            let rest = page(&first.streams[0].name, 0);
            assert!(!rest.more);
            assert_eq!(rest.streams.last().expect("a stream").name, "zz-last");
        },
        refused: |stage| {
            let list = |after: &str, limit| {
                let after = after.to_owned();
                let request = v1::ListStreamsRequest { after, limit };
                stage.wire.refused(stage.wire.admin().list_streams(request))
            };
            let bounds = [("setting", "limit"), ("value", "1001"), ("max", "1000")];
            list("", 1_001).says(InvalidArgument, "OUT_OF_BOUNDS", &bounds);
            list("?", 0).says(
                InvalidArgument,
                "STREAM_NAME_INVALID",
                &[("field", "after")],
            );
        },
    },
    Case {
        rpc: "flumen.v1.Admin/UpdateStream",
        good: |stage| {
            let request = v1::UpdateStreamRequest {
                stream: "there".to_owned(),
                retention_bytes: Some(1 << 30),
                ..Default::default()
            };
            let updated = stage.wire.good(stage.wire.admin().update_stream(request));
            let updated = updated.stream.expect("a stream");
            assert_eq!(
                (updated.retention_bytes, updated.shards.len()),
                (1 << 30, 2)
            );
        },
        refused: |stage| {
            let update = |request| {
                stage
                    .wire
                    .refused(stage.wire.admin().update_stream(request))
            };
            let missing = v1::UpdateStreamRequest {
                stream: "missing".to_owned(),
                retention_us: Some(7_200_000_000),
                ..Default::default()
            };
            update(missing).says(NotFound, "STREAM_NOT_FOUND", &[("stream", "missing")]);
            let large = v1::UpdateStreamRequest {
                stream: "there".to_owned(),
                max_record_bytes: Some(11 << 20),
                ..Default::default()
            };
            let bounds = [("value", "11534336"), ("max", "10485760")];
            update(large).says(InvalidArgument, "OUT_OF_BOUNDS", &bounds);
        },
    },
    Case {
        rpc: "flumen.v1.Admin/DeleteStream",
        good: |stage| {
            stage.create("short", 1);
            let stream = "short".to_owned();
            let request = v1::DeleteStreamRequest {
                stream,
                stream_incarnation: 0,
            };
            stage.wire.good(stage.wire.admin().delete_stream(request));
        },
        refused: |stage| {
            let stream = "short".to_owned();
            let request = v1::DeleteStreamRequest {
                stream,
                stream_incarnation: 0,
            };
            let refused = stage
                .wire
                .refused(stage.wire.admin().delete_stream(request));
            refused.says(NotFound, "STREAM_NOT_FOUND", &[("stream", "short")]);
        },
    },
    Case {
        rpc: "flumen.v1.Admin/ListGroups",
        good: |stage| {
            // Two streams with two groups each, in pages of one.
            for (stream, group) in [("there", "a"), ("there", "b"), ("made", "c"), ("made", "d")] {
                Member::join(&stage.wire, stream, group, "m", 1);
            }
            let mut found = Vec::new();
            let mut after = String::new();
            loop {
                let page = stage.groups("", &after, 1).expect("a page");
                assert!(page.groups.len() == 1, "{page:?}");
                found.extend(page.groups);
                let last = found.last().expect("a group");
                after = format!("{}/{}", last.stream, last.group);
                if !page.more {
                    break;
                }
            }
            let names: Vec<_> = found
                .iter()
                .map(|group| (&*group.stream, &*group.group))
                .collect();
            let expected = [("made", "c"), ("made", "d"), ("there", "a"), ("there", "b")];
            assert_eq!(names, expected);
            let there = &found[2];
            assert_eq!((there.members, there.shards), (1, 2), "{there:?}");
            assert_eq!(there.lag.map(|lag| lag.records), Some(3), "{there:?}");
            let one = stage.groups("made", "", 0).expect("a page").groups;
            assert_eq!(one.len(), 2, "{one:?}");
            // A cursor whose stream is gone goes on behind it.
            let rest = stage.groups("", "nowhere/x", 0).expect("a page").groups;
            assert!(rest.iter().all(|group| group.stream == "there"), "{rest:?}");
            assert_eq!(rest.len(), 2);
        },
        refused: |stage| {
            let refused = |stream: &str, after: &str, limit| {
                let refused = stage.groups(stream, after, limit);
                Refused::from(&refused.expect_err("a refusal"))
            };
            let missing = refused("missing", "", 0);
            missing.says(NotFound, "STREAM_NOT_FOUND", &[("stream", "missing")]);
            let bounds = [("setting", "limit"), ("value", "1001"), ("max", "1000")];
            refused("", "", 1_001).says(InvalidArgument, "OUT_OF_BOUNDS", &bounds);
            let after = [("field", "after")];
            refused("", "there", 0).says(InvalidArgument, "FIELD_MISSING", &after);
            refused("", "there/?", 0).says(InvalidArgument, "NAME_INVALID", &after);
        },
    },
    Case {
        rpc: "flumen.v1.Admin/DescribeGroup",
        good: |stage| {
            let mut member = Member::join(&stage.wire, "there", "described", "m", 7);
            let leases = member.leases(&stage.wire, 2);
            let group = stage.describe("there", "described").expect("a group");
            let summary = group.summary.expect("a summary");
            assert_eq!((summary.members, summary.shards), (1, 2));
            let one = &group.members[0];
            assert_eq!(
                (&*one.member, one.instance, one.connected, one.shards),
                ("m", 7, true, 2)
            );
            for (shard, lease) in group.shards.iter().zip(leases) {
                assert_eq!(shard.state(), v1::GroupShardState::Held);
                assert_eq!(
                    (shard.shard, shard.generation),
                    (lease.shard, lease.generation)
                );
                assert_eq!(shard.member, "m");
                assert_eq!((shard.sequence_number, shard.checkpointed_us), (None, 0));
            }
            assert_eq!(group.shards[0].lag.map(|lag| lag.records), Some(3));
        },
        refused: |stage| {
            let missing = stage.describe("there", "missing").expect_err("no group");
            let named = [("stream", "there"), ("group", "missing")];
            Refused::from(&missing).says(NotFound, "GROUP_NOT_FOUND", &named);
            let odd = stage.describe("there", "a b").expect_err("no name");
            let named = [("field", "group"), ("value", "a b")];
            Refused::from(&odd).says(InvalidArgument, "NAME_INVALID", &named);
        },
    },
    Case {
        rpc: "flumen.v1.Admin/ResetGroup",
        good: |stage| {
            Member::join(&stage.wire, "there", "reset", "m", 1).leave(&stage.wire);
            let reset = |dry_run| {
                let request = v1::ResetGroupRequest {
                    shards: vec![0],
                    dry_run,
                    ..to("there", "reset", Position::AtSequenceNumber(2))
                };
                stage
                    .wire
                    .good(stage.wire.admin().reset_group(request))
                    .shards
            };
            for (dry_run, before) in [(true, None), (false, None), (false, Some(2))] {
                let shards = reset(dry_run);
                assert_eq!(shards.len(), 1, "{shards:?}");
                let shard = shards[0];
                assert_eq!((shard.shard, shard.before, shard.after), (0, before, 2));
            }
            // A group may be put somewhere before its first member comes; a dry run makes none.
            let new = |dry_run| v1::ResetGroupRequest {
                dry_run,
                ..to("there", "new", Position::Latest(Newest {}))
            };
            stage.wire.good(stage.wire.admin().reset_group(new(true)));
            assert!(stage.describe("there", "new").is_err());
            stage.wire.good(stage.wire.admin().reset_group(new(false)));
            assert!(stage.describe("there", "new").is_ok());
            let group = stage.describe("there", "reset").expect("a group");
            assert_eq!(group.shards[0].sequence_number, Some(1));
            assert_eq!(group.shards[0].lag.map(|lag| lag.records), Some(1));
        },
        refused: |stage| {
            let reset = |request| stage.wire.refused(stage.wire.admin().reset_group(request));
            let oldest = || Position::TrimHorizon(Oldest {});
            let named = [("stream", "missing")];
            reset(to("missing", "g", oldest())).says(NotFound, "STREAM_NOT_FOUND", &named);
            let beyond = reset(v1::ResetGroupRequest {
                shards: vec![0],
                ..to("there", "reset", Position::AtSequenceNumber(9))
            });
            beyond.says(
                InvalidArgument,
                "BEYOND_END",
                &[("asked", "9"), ("end", "3")],
            );
            let nowhere = v1::ResetGroupRequest {
                shards: vec![7],
                ..to("there", "reset", oldest())
            };
            reset(nowhere).says(NotFound, "SHARD_NOT_FOUND", &[("shard", "7")]);
            let unsaid = v1::ResetGroupRequest {
                to: None,
                ..to("there", "reset", oldest())
            };
            reset(unsaid).says(InvalidArgument, "FIELD_MISSING", &[("field", "to")]);
            // Members are in the way, unless it is forced: then their leases end first.
            let mut member = Member::join(&stage.wire, "there", "held", "m", 1);
            member.leases(&stage.wire, 2);
            let held = [("shard", "0"), ("member", "m")];
            reset(to("there", "held", oldest())).says(FailedPrecondition, "GROUP_IN_USE", &held);
            let forced = v1::ResetGroupRequest {
                force: true,
                ..to("there", "held", oldest())
            };
            stage.wire.good(stage.wire.admin().reset_group(forced));
            let lost = member.hear(&stage.wire, |word| match word {
                Response::Lost(lost) => Some(lost),
                _ => None,
            });
            assert!(lost.reason.contains("reset"), "{lost:?}");
        },
    },
    Case {
        rpc: "flumen.v1.Admin/DeleteGroup",
        good: |stage| {
            let mut member = Member::join(&stage.wire, "there", "deleted", "m", 1);
            stage.wire.good(stage.delete("deleted", true));
            let named = [("stream", "there"), ("group", "deleted")];
            let told = member.ended(&stage.wire).expect_err("it is told");
            Refused::from(&told).says(NotFound, "GROUP_NOT_FOUND", &named);
            assert!(stage.describe("there", "deleted").is_err());
        },
        refused: |stage| {
            let _member = Member::join(&stage.wire, "there", "kept", "m", 1);
            let named = [("group", "kept"), ("members", "1")];
            let in_use = stage.wire.refused(stage.delete("kept", false));
            in_use.says(FailedPrecondition, "GROUP_IN_USE", &named);
            let missing = stage.wire.refused(stage.delete("missing", true));
            missing.says(NotFound, "GROUP_NOT_FOUND", &[("group", "missing")]);
        },
    },
    Case {
        rpc: "flumen.v1.Admin/SplitShard",
        good: |stage| {
            stage.create("cut", 1);
            let request = v1::SplitShardRequest {
                stream: "cut".to_owned(),
                ..Default::default()
            };
            let split = stage.wire.good(stage.wire.admin().split_shard(request));
            let shards = split.stream.expect("a stream").shards;
            let shown: Vec<_> = shards
                .iter()
                .map(|shard| (shard.open, &*shard.parents))
                .collect();
            assert_eq!(shown, [(false, &[][..]), (true, &[0]), (true, &[0])]);
        },
        refused: |stage| {
            let split = |shard, hash_key: &[u8]| {
                let request = v1::SplitShardRequest {
                    stream: "cut".to_owned(),
                    shard,
                    hash_key: Bytes::copy_from_slice(hash_key),
                    stream_incarnation: 0,
                };
                stage.wire.refused(stage.wire.admin().split_shard(request))
            };
            let closed = [("shard", "0"), ("end", "0")];
            split(0, b"").says(FailedPrecondition, "SHARD_CLOSED", &closed);
            split(9, b"").says(NotFound, "SHARD_NOT_FOUND", &[("shard", "9")]);
            split(1, b"abc").says(InvalidArgument, "HASH_KEY_INVALID", &[("bytes", "3")]);
            let outside = [
                ("shard", "2"),
                ("hash_key", "00000000000000000000000000000000"),
            ];
            split(2, &[0; 16]).says(InvalidArgument, "SPLIT_OUTSIDE", &outside);
        },
    },
    Case {
        rpc: "flumen.v1.Admin/MergeShards",
        good: |stage| {
            let request = v1::MergeShardsRequest {
                stream: "cut".to_owned(),
                shard: 2,
                adjacent_shard: 1,
                stream_incarnation: 0,
            };
            let merged = stage.wire.good(stage.wire.admin().merge_shards(request));
            let shards = merged.stream.expect("a stream").shards;
            assert_eq!((shards[3].open, &*shards[3].parents), (true, &[2, 1][..]));
        },
        refused: |stage| {
            let merge = |shard, adjacent_shard| {
                let request = v1::MergeShardsRequest {
                    stream: "cut".to_owned(),
                    shard,
                    adjacent_shard,
                    stream_incarnation: 0,
                };
                stage.wire.refused(stage.wire.admin().merge_shards(request))
            };
            merge(3, 1).says(FailedPrecondition, "SHARD_CLOSED", &[("shard", "1")]);
            let apart = [("shard", "3"), ("other", "3")];
            merge(3, 3).says(InvalidArgument, "SHARDS_NOT_ADJACENT", &apart);
        },
    },
    Case {
        rpc: "flumen.v1.Admin/ScaleStream",
        good: |stage| {
            let request = v1::ScaleStreamRequest {
                stream: "cut".to_owned(),
                shards: 5,
                stream_incarnation: 0,
            };
            let scaled = stage.wire.good(stage.wire.admin().scale_stream(request));
            let shards = scaled.stream.expect("a stream").shards;
            assert_eq!(shards.iter().filter(|shard| shard.open).count(), 5);
        },
        refused: |stage| {
            let request = v1::ScaleStreamRequest {
                stream: "cut".to_owned(),
                shards: 10_001,
                stream_incarnation: 0,
            };
            let refused = stage.wire.refused(stage.wire.admin().scale_stream(request));
            let bounds = [("setting", "shards"), ("max", "10000")];
            refused.says(InvalidArgument, "OUT_OF_BOUNDS", &bounds);
        },
    },
    Case {
        rpc: "flumen.v1.Admin/ConfirmClock",
        good: |stage| {
            let request = v1::ConfirmClockRequest {};
            let confirmed = stage.wire.good(stage.wire.admin().confirm_clock(request));
            assert_eq!(confirmed.jump_us, 0);
        },
        refused: |stage| {
            let path = "/flumen.v1.Admin/ConfirmClock";
            let status = stage.wire.raw(path, &[], Bytes::new());
            Refused::from(&status).says(InvalidArgument, "MESSAGE_MISSING", &[]);
        },
    },
    Case {
        rpc: "flumen.v1.Consumer/Read",
        good: |stage| {
            let request = v1::ReadRequest {
                stream: "there".to_owned(),
                start: position(Position::AtSequenceNumber(1)),
                ..Default::default()
            };
            let reply = stage.wire.good(stage.wire.consumer().read(request));
            assert_eq!((reply.start, reply.next, reply.durable_end), (1, 3, 3));
            assert_eq!(data(&reply), ["a", "b", "c"]);
        },
        refused: |stage| {
            let read = |shard, start| {
                let request = v1::ReadRequest {
                    stream: "there".to_owned(),
                    shard,
                    start,
                    ..Default::default()
                };
                stage.wire.refused(stage.wire.consumer().read(request))
            };
            read(0, None).says(InvalidArgument, "FIELD_MISSING", &[("field", "start")]);
            let oldest = || position(Position::TrimHorizon(Oldest {}));
            let nowhere = [("stream", "there"), ("shard", "7")];
            read(7, oldest()).says(NotFound, "SHARD_NOT_FOUND", &nowhere);
            let beyond = read(0, position(Position::AtSequenceNumber(9)));
            beyond.says(
                InvalidArgument,
                "BEYOND_END",
                &[("asked", "9"), ("end", "3")],
            );
        },
    },
    Case {
        rpc: "flumen.v1.Consumer/Subscribe",
        good: |stage| {
            let request = v1::SubscribeRequest {
                stream: "there".to_owned(),
                start: position(Position::TrimHorizon(Oldest {})),
                ..Default::default()
            };
            let mut replies = stage.wire.good(stage.wire.consumer().subscribe(request));
            let found = stage.wire.wait(async {
                let mut found = Vec::new();
                while found.len() < 3 {
                    let reply = replies.message().await.expect("a reply").expect("a reply");
                    found.extend(data(&reply));
                }
                found
            });
            assert_eq!(found, ["a", "b", "c"]);
        },
        refused: |stage| {
            let subscribe = |stream: &str, shards| {
                let request = v1::SubscribeRequest {
                    stream: stream.to_owned(),
                    shards,
                    start: position(Position::Latest(Newest {})),
                    ..Default::default()
                };
                stage.wire.refused(stage.wire.consumer().subscribe(request))
            };
            let missing = subscribe("missing", vec![]);
            missing.says(NotFound, "STREAM_NOT_FOUND", &[("stream", "missing")]);
            let start = |shard, start| {
                vec![v1::ShardStart {
                    shard,
                    start,
                    lease: None,
                }]
            };
            let no_start = subscribe("there", start(1, None));
            let field = [("field", "shards.start")];
            no_start.says(InvalidArgument, "FIELD_MISSING", &field);
            let nowhere = subscribe("there", start(7, position(Position::Latest(Newest {}))));
            nowhere.says(NotFound, "SHARD_NOT_FOUND", &[("shard", "7")]);
        },
    },
    Case {
        rpc: "flumen.v1.Consumer/Group",
        good: |stage| {
            let wire = &stage.wire;
            let mut member = Member::join(wire, "there", "read", "m", 1);
            let leases = member.leases(wire, 2);
            let lease = |shard: u32| {
                leases
                    .iter()
                    .find(|one| one.shard == shard)
                    .expect("a lease")
            };
            member.say(wire, Request::Heartbeat(v1::Heartbeat { number: 5 }));
            let heard = member.hear(wire, |word| match word {
                Response::Heartbeat(heard) => Some(heard.number),
                _ => None,
            });
            assert_eq!(heard, 5);
            let checkpoint = |generation, sequence_number| v1::Checkpoint {
                shard: 0,
                generation,
                sequence_number,
                ..Default::default()
            };
            let generation = lease(0).generation;
            let saved = member.save(wire, 1, vec![checkpoint(generation, 1)]);
            assert!(saved.refused.is_empty(), "{saved:?}");
            // Each checkpoint is refused by itself.
            let refusals = [
                (checkpoint(generation + 9, 2), "STALE_LEASE"),
                (checkpoint(generation, 0), "CHECKPOINT_BEHIND"),
            ];
            for (checkpoint, reason) in refusals {
                let saved = member.save(wire, 2, vec![checkpoint]);
                let refusal = saved.refused[0].refusal.as_ref().expect("a refusal");
                Refused::from(refusal).says(FailedPrecondition, reason, &[("shard", "0")]);
            }
            let beyond = member.save(wire, 3, vec![checkpoint(generation, 1_000)]);
            let refusal = beyond.refused[0].refusal.as_ref().expect("a refusal");
            let facts = [("shard", "0"), ("asked", "1001.0")];
            Refused::from(refusal).says(InvalidArgument, "CHECKPOINT_BEYOND_END", &facts);
            member.leave(wire);
            // Whoever comes next goes on behind the checkpoint, under a new generation.
            let next = Member::join(wire, "there", "read", "n", 2).leases(wire, 2);
            let first = next.iter().find(|one| one.shard == 0).expect("shard 0");
            assert!(first.generation > generation, "{first:?}");
            assert_eq!(first.sequence_number, Some(1));
            assert_eq!(first.start, position(Position::AtSequenceNumber(2)));
        },
        refused: |stage| {
            let wire = &stage.wire;
            let refused = |request: Request| {
                let mut member = Member::open(wire, request);
                let ended = member.ended(wire).expect_err("a refusal");
                Refused::from(&ended)
            };
            let join = |stream: &str, group: &str| join(stream, group, "m", 1);
            let first = refused(Request::Heartbeat(v1::Heartbeat { number: 1 }));
            first.says(InvalidArgument, "FIELD_MISSING", &[("field", "join")]);
            let missing = refused(Request::Join(join("missing", "g")));
            missing.says(NotFound, "STREAM_NOT_FOUND", &[("stream", "missing")]);
            let unnamed = refused(Request::Join(join("there", "")));
            unnamed.says(InvalidArgument, "FIELD_MISSING", &[("field", "join.group")]);
            let at = v1::JoinGroup {
                start: position(Position::AtSequenceNumber(1)),
                ..join("there", "g")
            };
            let at = refused(Request::Join(at));
            at.says(
                InvalidArgument,
                "POSITION_INVALID",
                &[("field", "join.start")],
            );
            let hasty = v1::JoinGroup {
                session_timeout_us: 5_000,
                ..join("there", "g")
            };
            let bounds = [("value", "5"), ("min", "1000"), ("max", "300000")];
            refused(Request::Join(hasty)).says(InvalidArgument, "OUT_OF_BOUNDS", &bounds);
            // Another process under the same name takes its place.
            let mut first = Member::join(wire, "there", "taken", "m", 1);
            let _second = Member::join(wire, "there", "taken", "m", 2);
            let replaced = first.ended(wire).expect_err("it is told");
            Refused::from(&replaced).says(FailedPrecondition, "MEMBER_REPLACED", &[]);
        },
    },
    Case {
        rpc: "flumen.v1.Delivery/CreateDelivery",
        good: delivery::create::good,
        refused: delivery::create::refused,
    },
    Case {
        rpc: "flumen.v1.Delivery/DescribeDelivery",
        good: delivery::describe::good,
        refused: delivery::describe::refused,
    },
    Case {
        rpc: "flumen.v1.Delivery/ListDeliveries",
        good: delivery::list::good,
        refused: delivery::list::refused,
    },
    Case {
        rpc: "flumen.v1.Delivery/UpdateDelivery",
        good: delivery::update::good,
        refused: delivery::update::refused,
    },
    Case {
        rpc: "flumen.v1.Delivery/PauseDelivery",
        good: delivery::pause::good,
        refused: delivery::pause::refused,
    },
    Case {
        rpc: "flumen.v1.Delivery/ResumeDelivery",
        good: delivery::resume::good,
        refused: delivery::resume::refused,
    },
    Case {
        rpc: "flumen.v1.Delivery/FlushDelivery",
        good: delivery::flush::good,
        refused: delivery::flush::refused,
    },
    Case {
        rpc: "flumen.v1.Delivery/DeleteDelivery",
        good: delivery::delete::good,
        refused: delivery::delete::refused,
    },
    Case {
        rpc: "flumen.v1.Producer/OpenProducer",
        good: |stage| {
            let open = || {
                let mut producer = stage.wire.producer();
                let request = v1::OpenProducerRequest {};
                stage.wire.good(producer.open_producer(request)).producer_id
            };
            let (first, second) = (open(), open());
            assert!(0 < first && first < second, "{first}, {second}");
        },
        refused: |stage| {
            let path = "/flumen.v1.Producer/OpenProducer";
            let status = stage.wire.raw(path, &[], Bytes::new());
            Refused::from(&status).says(InvalidArgument, "MESSAGE_MISSING", &[]);
        },
    },
    Case {
        rpc: "flumen.v1.Producer/Put",
        good: |stage| {
            let request = v1::PutRequest {
                stream: "made".to_owned(),
                records: vec![record("k", b"one"), record("k", b"two")],
                stream_incarnation: 0,
            };
            let put = stage.wire.good(stage.wire.producer().put(request));
            let numbers: Vec<_> = put.results.iter().map(|put| put.sequence_number).collect();
            assert_eq!(
                (numbers, put.durability()),
                (vec![0, 1], v1::Durability::Disk)
            );
            assert_eq!(put.results[0].shard, put.results[1].shard);
        },
        refused: |stage| {
            let put = |stream: &str, records| {
                let stream = stream.to_owned();
                let mut producer = stage.wire.producer();
                let put = producer.put(v1::PutRequest {
                    stream,
                    records,
                    stream_incarnation: 0,
                });
                stage.wire.wait(put)
            };
            let missing = put("missing", vec![record("k", b"x")]).expect_err("no stream");
            let named = [("stream", "missing")];
            Refused::from(&missing).says(NotFound, "STREAM_NOT_FOUND", &named);
            // Single records are refused in their places, and the others are stored.
            let hash_key = v1::PutRecord {
                explicit_hash_key: Bytes::from_static(b"abc"),
                ..record("k", b"x")
            };
            let large: &[u8] = Box::leak(vec![0; 2 << 20].into_boxed_slice());
            let records = vec![
                hash_key,
                record("", b"x"),
                record("k", large),
                record("k", b"x"),
            ];
            let results = put("there", records).expect("a reply").into_inner().results;
            let (limit, bytes) = ((1 << 20).to_string(), ((2 << 20) + 1).to_string());
            let too_large = [("bytes", &*bytes), ("limit", &*limit)];
            let refused = |place: usize| Refused::of_put(&results[place]);
            refused(0).says(InvalidArgument, "HASH_KEY_INVALID", &[("bytes", "3")]);
            refused(1).says(
                InvalidArgument,
                "RECORD_INVALID",
                &[("key_characters", "0")],
            );
            refused(2).says(InvalidArgument, "RECORD_TOO_LARGE", &too_large);
            assert!(results[3].refusal.is_none(), "{results:?}");
        },
    },
    Case {
        rpc: "flumen.v1.Producer/Append",
        good: |stage| {
            let open = v1::OpenProducerRequest {};
            let id = stage.wire.good(stage.wire.producer().open_producer(open));
            let id = id.producer_id;
            let bytes = |sequence| batch(id, sequence, 0, &[b"x", b"y"]).bytes().clone();
            let batches = vec![(0, bytes(0)), (0, bytes(1)), (0, bytes(0))];
            let (acks, ended) = stage.wire.append("made", batches);
            assert!(ended.is_ok(), "{ended:?}");
            let bases: Vec<_> = acks.iter().map(|ack| (ack.base, ack.duplicate)).collect();
            let base = acks[0].base;
            assert_eq!(bases, [(base, false), (base + 2, false), (base, true)]);
        },
        refused: |stage| {
            let good = batch(0, 0, 0, &[b"x"]).bytes().clone();
            let (_, missing) = stage.wire.append("missing", vec![(0, good.clone())]);
            let missing = Refused::from(&missing.expect_err("no stream"));
            missing.says(NotFound, "STREAM_NOT_FOUND", &[("stream", "missing")]);
            let (acks, ended) = stage
                .wire
                .append("there", vec![(1, good.clone()), (0, good)]);
            assert!(ended.is_ok(), "{ended:?}");
            let first = [
                ("shard", "1"),
                ("span_start", "00000000000000000000000000000000"),
            ];
            Refused::of_ack(&acks[0]).says(FailedPrecondition, "WRONG_SHARD", &first);
            Refused::of_ack(&acks[1]).says(FailedPrecondition, "SESSION_ENDED", &[]);
        },
    },
    Case {
        rpc: "grpc.health.v1.Health/Check",
        good: |stage| {
            for service in [
                "",
                "flumen.v1.Admin",
                "flumen.v1.Producer",
                "flumen.v1.Consumer",
                "flumen.v1.Delivery",
            ] {
                let mut client = HealthClient::new(stage.wire.channel());
                let health = stage.wire.good(client.check(health_of(service)));
                assert_eq!(health.status(), ServingStatus::Serving, "{service:?}");
            }
        },
        // The standard service has the standard's refusals.
        refused: |stage| {
            let mut client = HealthClient::new(stage.wire.channel());
            let unknown = stage.wire.refused(client.check(health_of("nobody")));
            assert_eq!(unknown.code, NotFound);
        },
    },
    Case {
        rpc: "grpc.health.v1.Health/Watch",
        good: |stage| {
            let mut client = HealthClient::new(stage.wire.channel());
            let mut watch = stage.wire.good(client.watch(health_of("")));
            let health = stage.wire.wait(watch.message()).expect("a reply");
            assert_eq!(health.map(status_of), Some(ServingStatus::Serving));
        },
        refused: |stage| {
            let mut client = HealthClient::new(stage.wire.channel());
            let unknown = stage.wire.refused(client.watch(health_of("nobody")));
            assert_eq!(unknown.code, NotFound);
        },
    },
    Case {
        rpc: "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        good: |stage| {
            describes_itself(reflection::v1::good(&stage.wire, "flumen.v1.Producer"));
        },
        refused: |stage| {
            let refused = reflection::v1::refused(&stage.wire, "flumen.v1.Nothing");
            assert_eq!(refused.code, NotFound);
        },
    },
    Case {
        rpc: "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        good: |stage| {
            describes_itself(reflection::v1alpha::good(&stage.wire, "flumen.v1.Producer"));
        },
        refused: |stage| {
            let refused = reflection::v1alpha::refused(&stage.wire, "flumen.v1.Nothing");
            assert_eq!(refused.code, NotFound);
        },
    },
];

/// `package.Service/Method` of every RPC that a descriptor set has, in its order.
fn rpcs(descriptors: &[u8]) -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(descriptors).expect("descriptors");
    let mut found = Vec::new();
    for file in &set.file {
        for service in &file.service {
            let methods = service.method.iter();
            let name = |method: &str| format!("{}.{}/{method}", file.package(), service.name());
            found.extend(methods.map(|method| name(method.name())));
        }
    }
    found
}

#[test]
fn every_rpc_has_a_case() {
    let served = [
        flumen_api::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let found: Vec<_> = served.into_iter().flat_map(rpcs).collect();
    let cases: Vec<_> = CASES.iter().map(|case| case.rpc).collect();
    assert_eq!(found, cases);
}

#[test]
fn every_rpc_succeeds_and_refuses() {
    let stage = Stage::set();
    for case in CASES {
        println!("{}", case.rpc);
        (case.good)(&stage);
        (case.refused)(&stage);
    }
}

/// What is not a call of ours, byte by byte: each has its code and its reason, and the next call
/// works.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_is_no_call_is_refused_for_a_reason() {
    let stage = Stage::set();
    let put = "/flumen.v1.Producer/Put";
    let check = |path: &str, headers: &[_], body: Bytes, code, reason: &str, metadata: &[_]| {
        let status = stage.wire.raw(path, headers, body);
        Refused::from(&status).says(code, reason, metadata);
    };
    let nothing = Bytes::new();
    let twice = Bytes::from([message(b""), message(b"")].concat());
    let cut = message(b"four").slice(..7);
    let compressed = Bytes::from_static(b"\x01\0\0\0\x01x");
    let huge = Bytes::from_static(b"\0\xff\xff\xff\xff");
    let limits = [("bytes", "4294967295"), ("limit", "17825792")];
    check(
        put,
        &[],
        nothing.clone(),
        InvalidArgument,
        "MESSAGE_MISSING",
        &[],
    );
    check(put, &[], twice, InvalidArgument, "MESSAGE_EXTRA", &[]);
    let expected = [("expected", "flumen.v1.PutRequest")];
    check(
        put,
        &[],
        message(b"\xff"),
        InvalidArgument,
        "MESSAGE_MALFORMED",
        &expected,
    );
    check(
        put,
        &[],
        cut,
        InvalidArgument,
        "MESSAGE_CUT",
        &[("needed", "4"), ("found", "2")],
    );
    check(
        put,
        &[],
        huge,
        ResourceExhausted,
        "MESSAGE_TOO_LARGE",
        &limits,
    );
    check(
        put,
        &[],
        compressed,
        Unimplemented,
        "MESSAGE_COMPRESSED",
        &[],
    );
    for path in ["/flumen.v1.Producer/Take", "/flumen.v9.Producer/Put", "/"] {
        let named = [("path", path)];
        check(
            path,
            &[],
            message(b""),
            Unimplemented,
            "METHOD_UNKNOWN",
            &named,
        );
    }
    let read = v1::ReadRequest {
        stream: "there".to_owned(),
        start: position(Position::Latest(Newest {})),
        max_wait_us: 30_000_000,
        ..Default::default()
    };
    let (read, soon) = (message(&read.encode_to_vec()), [("grpc-timeout", "50m")]);
    let path = "/flumen.v1.Consumer/Read";
    check(
        path,
        &soon,
        read,
        DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        &[],
    );
    let first = v1::AppendRequest {
        stream: "there".to_owned(),
        ..Default::default()
    };
    let second = v1::AppendRequest {
        stream: "elsewhere".to_owned(),
        ..Default::default()
    };
    let both = [first, second].map(|append| message(&append.encode_to_vec()));
    let streams = [("stream", "there"), ("asked", "elsewhere")];
    let (path, both) = ("/flumen.v1.Producer/Append", Bytes::from(both.concat()));
    check(path, &[], both, InvalidArgument, "OTHER_STREAM", &streams);
    // What is not gRPC at all has no gRPC status.
    let web = stage
        .wire
        .raw(put, &[("content-type", "text/html")], nothing);
    assert_eq!(web.message(), "415 Unsupported Media Type");
    stage.create("after-all", 1);
}

/// A reader that names a lease is served while the lease stands, and not a moment longer: a read is
/// refused, and a subscription ends, also when there is nothing to read.
#[test]
#[expect(clippy::too_many_lines, reason = "one story")]
fn whoever_reads_for_a_lease_ends_with_it() {
    let stage = Stage::set();
    let wire = &stage.wire;
    let mut member = Member::join(wire, "there", "g", "m", 1);
    let leases = member.leases(wire, 2);
    let named = |lease: &v1::ShardAssigned, ahead: u64| {
        Some(v1::ReadLease {
            group: "g".to_owned(),
            generation: lease.generation + ahead,
        })
    };
    let lease = |shard: u32| {
        leases
            .iter()
            .find(|one| one.shard == shard)
            .expect("a lease")
    };
    let read = |shard: u32, lease| v1::ReadRequest {
        stream: "there".to_owned(),
        shard,
        start: position(Position::TrimHorizon(Oldest {})),
        lease,
        ..Default::default()
    };
    let reply = wire.good(wire.consumer().read(read(0, named(lease(0), 0))));
    assert_eq!(data(&reply), ["a", "b", "c"]);
    // A generation that was never granted, a shard's lease for another shard, another group.
    let generation = (lease(0).generation + 9).to_string();
    let refused = wire.refused(wire.consumer().read(read(0, named(lease(0), 9))));
    let values = [("shard", "0"), ("generation", &*generation)];
    refused.says(FailedPrecondition, "STALE_LEASE", &values);
    let refused = wire.refused(wire.consumer().read(read(1, named(lease(0), 0))));
    refused.says(FailedPrecondition, "STALE_LEASE", &[("shard", "1")]);
    let other = v1::ReadLease {
        group: "other".to_owned(),
        generation: lease(0).generation,
    };
    let refused = wire.refused(wire.consumer().read(read(0, Some(other))));
    refused.says(FailedPrecondition, "STALE_LEASE", &[("shard", "0")]);

    let subscribe = |shard: u32, start, lease| v1::SubscribeRequest {
        stream: "there".to_owned(),
        shards: vec![v1::ShardStart {
            shard,
            start: position(start),
            lease,
        }],
        ..Default::default()
    };
    let oldest = Position::TrimHorizon(Oldest {});
    let request = subscribe(0, oldest, named(lease(0), 0));
    let mut busy = wire.good(wire.consumer().subscribe(request));
    let first = wire
        .wait(busy.message())
        .expect("a reply")
        .expect("a reply");
    assert_eq!(data(&first), ["a", "b", "c"]);
    let request = subscribe(1, Position::Latest(Newest {}), named(lease(1), 0));
    let mut idle = wire.good(wire.consumer().subscribe(request));

    // The leases are released: nobody holds the shards, and nothing is written.
    member.leave(wire);
    for (subscription, lease) in [(&mut busy, lease(0)), (&mut idle, lease(1))] {
        let ended = wire.wait(async {
            loop {
                match subscription.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("it ended without a word"),
                    Err(status) => break status,
                }
            }
        });
        let generation = lease.generation.to_string();
        let values = [
            ("shard", &*lease.shard.to_string()),
            ("generation", &*generation),
        ]
        .map(|(name, value)| (name, value.to_owned()));
        let values: Vec<_> = values
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        Refused::from(&ended).says(FailedPrecondition, "STALE_LEASE", &values);
    }
    let old = wire.refused(wire.consumer().read(read(0, named(lease(0), 0))));
    old.says(FailedPrecondition, "STALE_LEASE", &[("shard", "0")]);
    // The next holder's generation is another one, and the old one stays refused.
    let next = Member::join(wire, "there", "g", "n", 2).leases(wire, 2);
    assert!(
        next.iter()
            .all(|new| leases.iter().all(|old| old.generation < new.generation))
    );
    let old = wire.refused(wire.consumer().read(read(0, named(lease(0), 0))));
    old.says(FailedPrecondition, "STALE_LEASE", &[("shard", "0")]);
}

/// Sessions of a node that ends are told so, with a delay after which to come again; health says it
/// first.
#[test]
fn a_node_that_drains_says_so_to_everyone() {
    let mut stage = Stage::set();
    let wire = &stage.wire;
    let mut health = HealthClient::new(wire.channel());
    let mut watch = wire.good(health.watch(health_of("flumen.v1.Producer")));
    let now = wire.wait(watch.message()).expect("a reply");
    assert_eq!(now.map(status_of), Some(ServingStatus::Serving));
    let latest = || position(Position::Latest(Newest {}));
    let request = v1::SubscribeRequest {
        stream: "there".to_owned(),
        start: latest(),
        ..Default::default()
    };
    let mut subscription = wire.good(wire.consumer().subscribe(request));
    // The first reply of each shard says where it stands.
    let (messages, queue) = tokio::sync::mpsc::channel(1);
    let open = v1::AppendRequest {
        stream: "there".to_owned(),
        ..Default::default()
    };
    wire.wait(messages.send(open)).expect("room");
    let queue = tokio_stream::wrappers::ReceiverStream::new(queue);
    let mut producer = wire.producer();
    let mut session = wire.good(producer.append(queue));
    let opened = wire.wait(session.message()).expect("a reply");
    assert!(opened.is_some_and(|first| first.acks.is_empty()));
    // Nothing is put into these sessions: only the end of the node can end them.
    assert_eq!(stage.broker.terminate(), Some(0));
    let told = wire.wait(watch.message()).expect("a reply");
    assert_eq!(told.map(status_of), Some(ServingStatus::NotServing));
    let ended = wire.wait(session.message()).expect_err("it ends");
    Refused::from(&ended).says(Unavailable, "DRAINING", &[]);
    let ended = wire.wait(async {
        loop {
            match subscription.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a word"),
                Err(status) => break status,
            }
        }
    });
    Refused::from(&ended).says(Unavailable, "DRAINING", &[]);
}
