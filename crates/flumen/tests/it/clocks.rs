//! A start under a wall clock that is far from what the data directory saw last, with the real binary.
//! (What follows from it is tested in `crates/broker/tests/it/clocks.rs`, on a clock that can be set.)

use std::time::Duration;

use flumen_broker::Clock;
use flumen_stream::RememberedMoment;

use crate::cli::run;
use crate::process::BrokerProcess;

const OFF: Duration = Duration::from_secs(40 * 24 * 3600);

#[test]
fn a_clock_that_went_back_is_not_believed_until_it_is_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut broker = BrokerProcess::start(&data);
    let flumen = |broker: &BrokerProcess, words: &str| {
        let words = format!("--endpoint {} {words}", broker.endpoint);
        run(folder.path(), &words, b"x\n")
    };
    flumen(&broker, "stream create s").good();
    flumen(&broker, "produce s").good();
    assert_eq!(broker.terminate(), Some(0));
    // As if it had been in use 40 days from now, by a clock that was right then.
    let moment = RememberedMoment {
        wall: Clock::system().now().saturating_add(OFF),
        boot: 0,
        uptime: Duration::ZERO,
    };
    std::fs::write(data.join("clock"), moment.encode()).unwrap();

    let doctor = run(folder.path(), "doctor --data-dir data", b"").good();
    if !doctor.contains("behind what this directory saw last") {
        println!("skipped: this machine's clock is synchronised, and believed: {doctor}");
        return;
    }
    assert!(
        doctor.contains("40.0 d") && doctor.contains("no damage"),
        "{doctor}"
    );
    let broker = BrokerProcess::start(&data);
    let ready = broker.get("/readyz");
    assert!(
        ready.starts_with("HTTP/1.1 200") && ready.contains("flumen clock confirm"),
        "{ready}"
    );
    let metrics = broker.get("/metrics");
    let jump = metrics
        .lines()
        .find_map(|line| line.strip_prefix("flumen_clock_jump_seconds "));
    let jump: f64 = jump.expect("the gauge").parse().expect("a number");
    assert!((jump + OFF.as_secs_f64()).abs() < 60.0, "{jump}");
    flumen(&broker, "produce s").good();
    assert_eq!(flumen(&broker, "consume s").good(), "x\nx\n");
    let said = flumen(&broker, "clock confirm").good();
    assert!(said.contains("40.0 d behind"), "{said}");
    assert_eq!(
        flumen(&broker, "clock confirm").good(),
        "the wall clock is believed\n"
    );
    assert!(broker.get("/readyz").ends_with("ready\n"));
    // The next start doubts nothing.
    drop(broker);
    let broker = BrokerProcess::start(&data);
    assert!(broker.get("/readyz").ends_with("ready\n"));
}
