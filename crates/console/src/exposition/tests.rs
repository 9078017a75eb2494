//! The text that a scraper sees.

use super::*;

fn snapshot() -> MetricsSnapshot {
    MetricsSnapshot {
        counters: vec![
            (
                "records_in",
                "Records appended",
                vec![("stream", "a\"b".to_owned())],
                7,
            ),
            ("bytes_in", "Bytes appended", Vec::new(), 700),
            (
                "records_in",
                "Records appended",
                vec![("stream", "c".to_owned())],
                8,
            ),
        ],
        gauges: vec![("disk_free_bytes", "Free space", Vec::new(), 1.5e9)],
        histograms: vec![(
            "append_latency_seconds",
            "From a batch's arrival to its ack",
            Vec::new(),
            HistogramSnapshot {
                buckets: vec![(0.001, 3), (0.01, 5)],
                sum_seconds: 0.25,
                count: 6,
            },
        )],
    }
}

#[test]
fn every_name_is_described_once_and_carries_the_prefix() {
    let text = render(Some(snapshot().into()), ProcessStats::default(), true).unwrap();
    let described: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("# TYPE"))
        .collect();
    let mut unique = described.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(described.len(), unique.len(), "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("flumen_"), "{line}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn counters_gauges_and_histograms_keep_their_values() {
    let text = render(Some(snapshot().into()), ProcessStats::default(), true).unwrap();
    for line in [
        "flumen_records_in_total{stream=\"a\\\"b\"} 7",
        "flumen_records_in_total{stream=\"c\"} 8",
        "flumen_bytes_in_total 700",
        "flumen_disk_free_bytes 1500000000.0",
        "flumen_append_latency_seconds_bucket{le=\"0.001\"} 3",
        "flumen_append_latency_seconds_bucket{le=\"0.01\"} 5",
        "flumen_append_latency_seconds_bucket{le=\"+Inf\"} 6",
        "flumen_append_latency_seconds_count 6",
        "flumen_append_latency_seconds_sum 0.25",
        "flumen_ready 1.0",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is missing in\n{text}"
        );
    }
}

#[test]
fn a_node_that_recovers_has_process_numbers_only() {
    let process = ProcessStats {
        resident_bytes: Some(4096),
        ..ProcessStats::default()
    };
    let text = render(None, process, false).unwrap();
    assert!(
        text.contains("flumen_process_resident_bytes 4096.0"),
        "{text}"
    );
    assert!(text.contains("flumen_ready 0.0"), "{text}");
    assert!(!text.contains("records_in"), "{text}");
}
