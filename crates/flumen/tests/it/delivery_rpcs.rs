//! The RPCs of delivery streams, for `rpcs.rs`: one success and one refusal each, in its order.

use flumen_api::v1;
use flumen_api::v1::delivery_settings::{Destination, Format, Source};
use flumen_api::v1::start_position::Position;
use tonic::Code::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable};

use crate::rpcs::Stage;
use crate::wire::Refused;

/// Delivers the stream `there` into a directory, when it is asked to.
const KEPT: &str = "kept";
/// Takes direct puts, into memory.
const PUTS: &str = "puts";

/// Where [`KEPT`] delivers to.
fn objects(stage: &Stage) -> std::path::PathBuf {
    stage.dir.path().join("objects")
}

fn from_there(stage: &Stage) -> v1::DeliverySettings {
    v1::DeliverySettings {
        source: Some(Source::Stream(v1::StreamSource {
            stream: "there".to_owned(),
            start: None,
        })),
        destination: Some(Destination::Directory(v1::DirectoryDestination {
            path: objects(stage).display().to_string(),
        })),
        ..Default::default()
    }
}

fn describe_it(stage: &Stage, name: &str) -> v1::DeliveryDescription {
    let delivery = name.to_owned();
    let request = v1::DescribeDeliveryRequest { delivery };
    let described = stage
        .wire
        .good(stage.wire.delivery().describe_delivery(request));
    described.delivery.expect("a delivery stream")
}

/// Delivers to where nobody listens.
fn create_unreachable(stage: &Stage) {
    let request = v1::CreateDeliveryRequest {
        delivery: "unreachable".to_owned(),
        settings: Some(v1::DeliverySettings {
            destination: Some(Destination::S3(v1::S3Destination {
                bucket: "bucket".to_owned(),
                endpoint: Some("http://127.0.0.1:1".to_owned()),
                ..Default::default()
            })),
            ..from_there(stage)
        }),
    };
    stage
        .wire
        .good(stage.wire.delivery().create_delivery(request));
}

pub(crate) mod create {
    use super::*;

    pub(crate) fn good(stage: &Stage) {
        let create = |name: &str, settings| {
            let request = v1::CreateDeliveryRequest {
                delivery: name.to_owned(),
                settings: Some(settings),
            };
            let created = stage
                .wire
                .good(stage.wire.delivery().create_delivery(request));
            created.delivery.expect("a delivery stream")
        };
        let kept = create(KEPT, from_there(stage));
        assert_eq!(
            (&*kept.name, &*kept.stream, kept.version),
            (KEPT, "there", 1)
        );
        let settings = kept.settings.expect("settings");
        let buffering = settings.buffering.expect("hints");
        let hints = (buffering.size_bytes, buffering.interval_ms);
        assert_eq!(hints, (Some(5 << 20), Some(300_000)));
        assert_eq!(
            settings.format,
            Some(Format::Verbatim(v1::VerbatimFormat {}))
        );
        let puts = v1::DeliverySettings {
            source: Some(Source::Direct(v1::DirectSource { shards: Some(2) })),
            destination: Some(Destination::Memory(v1::MemoryDestination {
                name: "m".to_owned(),
            })),
            ..Default::default()
        };
        assert_eq!(create(PUTS, puts).stream, "delivery.puts");
        let stream = "delivery.puts".to_owned();
        let request = v1::DescribeStreamRequest { stream };
        let described = stage.wire.good(stage.wire.admin().describe_stream(request));
        assert_eq!(described.stream.expect("a stream").shards.len(), 2);
    }

    pub(crate) fn refused(stage: &Stage) {
        let create = |name: &str, settings| {
            let request = v1::CreateDeliveryRequest {
                delivery: name.to_owned(),
                settings,
            };
            stage
                .wire
                .refused(stage.wire.delivery().create_delivery(request))
        };
        let with = |change: fn(&mut v1::DeliverySettings)| {
            let mut settings = from_there(stage);
            change(&mut settings);
            create("new", Some(settings))
        };
        let exists = [("delivery", KEPT)];
        create(KEPT, Some(from_there(stage))).says(AlreadyExists, "DELIVERY_EXISTS", &exists);
        let missing = |field| [("field", field)];
        create("", Some(from_there(stage))).says(
            InvalidArgument,
            "FIELD_MISSING",
            &missing("delivery"),
        );
        create("new", None).says(InvalidArgument, "FIELD_MISSING", &missing("settings"));
        let named_so = [("field", "delivery"), ("value", "a/b")];
        create("a/b", Some(from_there(stage))).says(InvalidArgument, "NAME_INVALID", &named_so);
        let sourceless = with(|settings| settings.source = None);
        sourceless.says(InvalidArgument, "FIELD_MISSING", &missing("source"));
        let nowhere = with(|settings| settings.destination = None);
        nowhere.says(InvalidArgument, "FIELD_MISSING", &missing("destination"));
        let unknown = with(|settings| settings.compression = 77);
        let value = [("field", "compression"), ("value", "77")];
        unknown.says(InvalidArgument, "VALUE_UNKNOWN", &value);
        let numbered = with(|settings| {
            settings.source = Some(Source::Stream(v1::StreamSource {
                stream: "there".to_owned(),
                start: Some(v1::StartPosition {
                    position: Some(Position::AtSequenceNumber(1)),
                }),
            }));
        });
        let start = missing("stream.start");
        numbered.says(InvalidArgument, "POSITION_INVALID", &start);
        let lost = with(|settings| {
            settings.source = Some(Source::Stream(v1::StreamSource {
                stream: "missing".to_owned(),
                start: None,
            }));
        });
        lost.says(NotFound, "STREAM_NOT_FOUND", &[("stream", "missing")]);
        // What the sink checks.
        let small = with(|settings| {
            settings.buffering = Some(v1::BufferingHints {
                size_bytes: Some(1),
                interval_ms: None,
            });
        });
        let setting = [("setting", "buffering.size_bytes")];
        small.says(InvalidArgument, "DELIVERY_SETTING", &setting);
    }
}

pub(crate) mod describe {
    use super::*;

    pub(crate) fn good(stage: &Stage) {
        let described = describe_it(stage, KEPT);
        let backlog = described.backlog.expect("a backlog");
        assert_eq!(backlog.records, 3, "{backlog:?}");
        assert!(backlog.bytes > 0 && backlog.oldest_us > 0, "{backlog:?}");
        assert!(described.freshness_us > 0);
        assert!(described.created_us > 0 && !described.paused);
        assert_ne!(described.status(), v1::DeliveryStatus::Unspecified);
    }

    pub(crate) fn refused(stage: &Stage) {
        let delivery = "missing".to_owned();
        let request = v1::DescribeDeliveryRequest { delivery };
        let refused = stage
            .wire
            .refused(stage.wire.delivery().describe_delivery(request));
        refused.says(NotFound, "DELIVERY_NOT_FOUND", &[("delivery", "missing")]);
    }
}

pub(crate) mod list {
    use super::*;

    pub(crate) fn good(stage: &Stage) {
        let page = |after: &str, limit| {
            let after = after.to_owned();
            let request = v1::ListDeliveriesRequest { after, limit };
            let page = stage
                .wire
                .good(stage.wire.delivery().list_deliveries(request));
            let names: Vec<_> = page.deliveries.into_iter().map(|one| one.name).collect();
            (names, page.more)
        };
        assert_eq!(page("", 1), (vec![KEPT.to_owned()], true));
        assert_eq!(page(KEPT, 0), (vec![PUTS.to_owned()], false));
        assert_eq!(page("", 0).0.len(), 2);
    }

    pub(crate) fn refused(stage: &Stage) {
        let list = |after: &str, limit| {
            let after = after.to_owned();
            let request = v1::ListDeliveriesRequest { after, limit };
            stage
                .wire
                .refused(stage.wire.delivery().list_deliveries(request))
        };
        let bounds = [("setting", "limit"), ("value", "1001"), ("max", "1000")];
        list("", 1_001).says(InvalidArgument, "OUT_OF_BOUNDS", &bounds);
        list("?", 0).says(InvalidArgument, "NAME_INVALID", &[("field", "after")]);
    }
}

pub(crate) mod update {
    use super::*;

    fn request(
        name: &str,
        version: u64,
        settings: v1::DeliverySettings,
    ) -> v1::UpdateDeliveryRequest {
        v1::UpdateDeliveryRequest {
            delivery: name.to_owned(),
            settings: Some(settings),
            version,
        }
    }

    pub(crate) fn good(stage: &Stage) {
        for version in [1, 0] {
            let before = describe_it(stage, KEPT);
            let mut settings = before.settings.expect("settings");
            settings.format = Some(Format::Ndjson(v1::NdjsonFormat {}));
            settings.buffering = Some(v1::BufferingHints {
                size_bytes: Some(1 << 20),
                interval_ms: None,
            });
            let request = request(KEPT, version, settings);
            let updated = stage
                .wire
                .good(stage.wire.delivery().update_delivery(request));
            let updated = updated.delivery.expect("a delivery stream");
            assert_eq!(updated.version, before.version + 1);
            let settings = updated.settings.expect("settings");
            assert_eq!(settings.format, Some(Format::Ndjson(v1::NdjsonFormat {})));
            let buffering = settings.buffering.expect("hints");
            let hints = (buffering.size_bytes, buffering.interval_ms);
            assert_eq!(hints, (Some(1 << 20), Some(300_000)));
        }
    }

    pub(crate) fn refused(stage: &Stage) {
        let update = |request| {
            stage
                .wire
                .refused(stage.wire.delivery().update_delivery(request))
        };
        let stale = [("expected", "1"), ("current", "3")];
        update(request(KEPT, 1, from_there(stage))).says(
            FailedPrecondition,
            "DELIVERY_VERSION",
            &stale,
        );
        let direct = v1::DeliverySettings {
            source: Some(Source::Direct(v1::DirectSource::default())),
            ..from_there(stage)
        };
        let source = [("setting", "source")];
        update(request(KEPT, 0, direct)).says(InvalidArgument, "DELIVERY_IMMUTABLE", &source);
        update(request("missing", 0, from_there(stage))).says(
            NotFound,
            "DELIVERY_NOT_FOUND",
            &[("delivery", "missing")],
        );
    }
}

pub(crate) mod pause {
    use super::*;

    fn request(name: &str) -> v1::PauseDeliveryRequest {
        let delivery = name.to_owned();
        v1::PauseDeliveryRequest { delivery }
    }

    pub(crate) fn good(stage: &Stage) {
        // A second time nothing happens.
        for _ in 0..2 {
            let paused = stage
                .wire
                .good(stage.wire.delivery().pause_delivery(request(KEPT)));
            assert!(paused.delivery.expect("a delivery stream").paused);
        }
        let flush = v1::FlushDeliveryRequest {
            delivery: KEPT.to_owned(),
            wait_us: None,
        };
        let refused = stage
            .wire
            .refused(stage.wire.delivery().flush_delivery(flush));
        refused.says(FailedPrecondition, "DELIVERY_PAUSED", &[("delivery", KEPT)]);
    }

    pub(crate) fn refused(stage: &Stage) {
        let refused = stage
            .wire
            .refused(stage.wire.delivery().pause_delivery(request("missing")));
        refused.says(NotFound, "DELIVERY_NOT_FOUND", &[("delivery", "missing")]);
    }
}

pub(crate) mod resume {
    use super::*;

    fn request(name: &str) -> v1::ResumeDeliveryRequest {
        v1::ResumeDeliveryRequest {
            delivery: name.to_owned(),
            ..v1::ResumeDeliveryRequest::default()
        }
    }

    pub(crate) fn good(stage: &Stage) {
        let resumed = stage
            .wire
            .good(stage.wire.delivery().resume_delivery(request(KEPT)));
        assert!(!resumed.delivery.expect("a delivery stream").paused);
        let renewal = v1::ResumeDeliveryRequest {
            new_incarnation: true,
            ..request(KEPT)
        };
        let renewed = stage
            .wire
            .good(stage.wire.delivery().resume_delivery(renewal));
        assert!(!renewed.delivery.expect("a delivery stream").paused);
    }

    pub(crate) fn refused(stage: &Stage) {
        let refused = stage
            .wire
            .refused(stage.wire.delivery().resume_delivery(request("missing")));
        refused.says(NotFound, "DELIVERY_NOT_FOUND", &[("delivery", "missing")]);
    }
}

pub(crate) mod flush {
    use super::*;

    fn request(name: &str, wait_us: Option<u64>) -> v1::FlushDeliveryRequest {
        let delivery = name.to_owned();
        v1::FlushDeliveryRequest { delivery, wait_us }
    }

    pub(crate) fn good(stage: &Stage) {
        let flushed = stage
            .wire
            .good(stage.wire.delivery().flush_delivery(request(KEPT, None)));
        let flushed = flushed.delivery.expect("a delivery stream");
        let backlog = flushed.backlog.expect("a backlog");
        assert_eq!(
            (backlog.records, flushed.freshness_us),
            (0, 0),
            "{backlog:?}"
        );
        assert!(flushed.cuts >= 1 && flushed.cuts_open == 0, "{flushed:?}");
        assert_eq!(flushed.status(), v1::DeliveryStatus::Running);
        // `a`, `b` and `c` are not JSON: they are in an object of the error prefix.
        let last = flushed.last_object.expect("an object");
        assert!(last.bytes > 0 && last.at_us > 0, "{last:?}");
        assert!(objects(stage).join(&last.key).is_file(), "{last:?}");
    }

    pub(crate) fn refused(stage: &Stage) {
        let flush = |request| {
            stage
                .wire
                .refused(stage.wire.delivery().flush_delivery(request))
        };
        flush(request("missing", None)).says(
            NotFound,
            "DELIVERY_NOT_FOUND",
            &[("delivery", "missing")],
        );
        let long = [("setting", "wait_us"), ("max", "3600000000")];
        flush(request(KEPT, Some(3_600_000_001))).says(InvalidArgument, "OUT_OF_BOUNDS", &long);
        create_unreachable(stage);
        let unfinished = [("work", "flush"), ("waited_ms", "300")];
        flush(request("unreachable", Some(300_000))).says(
            Unavailable,
            "DELIVERY_UNFINISHED",
            &unfinished,
        );
    }
}

pub(crate) mod delete {
    use super::*;

    fn request(name: &str, drop: bool) -> v1::DeleteDeliveryRequest {
        v1::DeleteDeliveryRequest {
            delivery: name.to_owned(),
            drop,
            wait_us: None,
        }
    }

    pub(crate) fn good(stage: &Stage) {
        let used = v1::DeleteStreamRequest {
            stream: "there".to_owned(),
            stream_incarnation: 0,
        };
        let refused = stage.wire.refused(stage.wire.admin().delete_stream(used));
        let by = [("stream", "there"), ("delivery", KEPT)];
        refused.says(FailedPrecondition, "STREAM_IN_USE", &by);
        for (name, drop) in [(KEPT, false), (PUTS, false), ("unreachable", true)] {
            let request = request(name, drop);
            stage
                .wire
                .good(stage.wire.delivery().delete_delivery(request));
        }
        let stream = "delivery.puts".to_owned();
        let request = v1::DescribeStreamRequest { stream };
        let gone = stage
            .wire
            .refused(stage.wire.admin().describe_stream(request));
        gone.says(NotFound, "STREAM_NOT_FOUND", &[("stream", "delivery.puts")]);
    }

    pub(crate) fn refused(stage: &Stage) {
        let refused = stage
            .wire
            .refused(stage.wire.delivery().delete_delivery(request(KEPT, false)));
        refused.says(NotFound, "DELIVERY_NOT_FOUND", &[("delivery", KEPT)]);
    }
}

/// Whoever waits for a flush that cannot be done is told when the node goes away, and does not keep
/// it from going.
#[test]
fn a_flush_that_waits_ends_when_the_node_drains() {
    let mut stage = Stage::set();
    create_unreachable(&stage);
    let (wire, broker) = (&stage.wire, &mut stage.broker);
    let flush = v1::FlushDeliveryRequest {
        delivery: "unreachable".to_owned(),
        wait_us: Some(3_600_000_000),
    };
    let ended = wire.wait(async {
        let mut flushing = wire.delivery();
        // Sent after it, over the same connection: when this is answered, the flush has arrived.
        let ending = async {
            let delivery = "unreachable".to_owned();
            let request = v1::DescribeDeliveryRequest { delivery };
            let answer = wire.delivery().describe_delivery(request).await;
            (answer.is_ok(), broker.terminate())
        };
        let (flushed, ended) = tokio::join!(flushing.flush_delivery(flush), ending);
        assert_eq!(ended, (true, Some(0)));
        flushed.expect_err("it is not done")
    });
    Refused::from(&ended).says(Unavailable, "DRAINING", &[]);
}
