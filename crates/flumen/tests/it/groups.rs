//! Consumer groups as users meet them: `consume --group` in processes that are killed, asked to end,
//! and cut off from whoever read them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::cli::{Ran, Running, run, start};
use crate::process::BrokerProcess;

/// What is waited for comes within this time.
const LONGEST: Duration = Duration::from_secs(60);

/// A broker with an empty stream of four shards.
struct Stage {
    dir: tempfile::TempDir,
    broker: BrokerProcess,
}

impl Stage {
    fn set() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let broker = BrokerProcess::start(&dir.path().join("data"));
        let stage = Self { dir, broker };
        stage.flumen("stream create s --shards 4", b"").good();
        stage
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn words(&self, words: &str) -> String {
        format!("--endpoint {} {words}", self.broker.endpoint)
    }

    fn flumen(&self, words: &str, input: &[u8]) -> Ran {
        run(self.path(), &self.words(words), input)
    }

    fn start(&self, words: &str, input: &[u8]) -> Running {
        start(self.path(), &self.words(words), input)
    }

    /// `group describe s g`.
    fn describe(&self) -> Value {
        let out = self.flumen("--output json group describe s g", b"");
        if out.code == Some(0) {
            serde_json::from_str(&out.out).expect("JSON")
        } else {
            Value::Null
        }
    }

    /// Looks at the group until it is like that.
    #[track_caller]
    fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let group = self.describe();
            if is_so(&group) {
                return group;
            }
            assert!(begun.elapsed() < LONGEST, "{what} never came: {group}");
        }
    }

    fn lag(&self) -> u64 {
        self.describe()["lag_records"].as_u64().expect("a number")
    }
}

/// Records of the same width, so that a line that a kill has cut is not mistaken for another.
fn lines(count: usize) -> String {
    (0..count).fold(String::new(), |mut text, n| {
        writeln!(text, "{n:08}").expect("text");
        text
    })
}

fn whole(out: &str) -> impl Iterator<Item = &str> {
    let lines = out.split_inclusive('\n');
    lines.filter_map(|line| line.strip_suffix('\n'))
}

/// How many shards a member holds.
fn held(group: &Value, member: &str) -> usize {
    let shards = group["shard_map"].as_array().map_or(&[][..], Vec::as_slice);
    let mine = |shard: &&Value| shard["member"] == member && shard["state"] == "held";
    shards.iter().filter(mine).count()
}

fn generations(group: &Value) -> Vec<&Value> {
    let shards = group["shard_map"].as_array().expect("shards").iter();
    shards.map(|shard| &shard["generation"]).collect()
}

#[test]
fn a_member_that_is_killed_takes_no_record_along() {
    let stage = Stage::set();
    let join = |member| {
        let words = format!(
            "consume s --group g --follow --member {member} --session-timeout 2s --format %d\\n"
        );
        stage.start(&words, b"")
    };
    let mut a = join("a");
    let b = join("b");
    stage.until("two members with two shards each", |group| {
        held(group, "a") == 2 && held(group, "b") == 2
    });
    let all = lines(20_000);
    let producing = stage.start("produce s --key random --rate 5000", all.as_bytes());
    stage.until("a checkpoint in every shard", |group| {
        let shards = group["shard_map"].as_array().expect("shards").iter();
        shards
            .filter(|shard| shard["sequence_number"].is_u64())
            .count()
            == 4
    });
    let before = stage.lag();
    a.kill();
    let a = a.wait();
    producing.wait().good();
    // Its session timeout later the other one has everything, and comes to the end.
    let group = stage.until("one member at the end", |group| {
        group["members"] == 1 && held(group, "b") == 4 && group["lag_records"] == 0
    });
    assert_eq!(group["forced_hand_overs"], 0, "{group}");
    let page = stage.broker.get("/metrics");
    assert!(
        page.contains("flumen_group_leases_lost_total 2\n"),
        "{page}"
    );
    b.terminate();
    let b = b.wait();
    assert_eq!(b.code, Some(0), "{}", b.err);
    let printed: BTreeSet<&str> = whole(&a.out).chain(whole(&b.out)).collect();
    let missing: Vec<_> = whole(&all).filter(|line| !printed.contains(line)).collect();
    assert!(
        missing.is_empty(),
        "{} are missing: {:?}",
        missing.len(),
        missing.first()
    );
    let (of_a, of_b) = (whole(&a.out).count(), whole(&b.out).count());
    assert!(of_a > 0 && of_b > 0, "{of_a}, {of_b}");
    println!("{of_a} by the killed one, {of_b} by the other, lag {before} at the kill");
    // It left in order: nobody waits for its session timeout.
    let group = stage.describe();
    assert_eq!(group["members"], 0, "{group}");
    let shards = group["shard_map"].as_array().expect("shards");
    assert!(
        shards.iter().all(|shard| shard["state"] == "free"),
        "{group}"
    );
}

/// A member that is paused for longer than its session timeout is a zombie when it goes on: it has
/// lost its leases, begins anew under others, and takes no checkpoint back.
#[test]
fn a_member_that_was_paused_is_fenced_and_joins_again() {
    let stage = Stage::set();
    let join = |member| {
        let words = format!(
            "consume s --group g --follow --member {member} --session-timeout 2s --format %d\\n"
        );
        stage.start(&words, b"")
    };
    let (a, b) = (join("a"), join("b"));
    stage.until("two members with two shards each", |group| {
        held(group, "a") == 2 && held(group, "b") == 2
    });
    let all = lines(21_000);
    let (first, second) = all.split_at(20_000 * 9);
    let producing = stage.start("produce s --key random --rate 5000", first.as_bytes());
    let checkpoints = |group: &Value| -> Vec<u64> {
        let shards = group["shard_map"].as_array().expect("shards").iter();
        shards
            .filter_map(|shard| shard["sequence_number"].as_u64())
            .collect()
    };
    let before = stage.until("a checkpoint in every shard", |group| {
        checkpoints(group).len() == 4
    });
    a.signal("STOP");
    let taken = stage.until("one member with everything", |group| {
        group["members"] == 1 && held(group, "b") == 4
    });
    assert_ne!(generations(&before), generations(&taken));
    producing.wait().good();
    let done = stage.until("the end", |group| group["lag_records"] == 0);
    a.signal("CONT");
    let shared = stage.until("both again", |group| {
        held(group, "a") == 2 && held(group, "b") == 2
    });
    for (before, after) in checkpoints(&done).iter().zip(checkpoints(&shared)) {
        assert!(after >= *before, "{done} {shared}");
    }
    stage
        .flumen("produce s --key random", second.as_bytes())
        .good();
    let end = stage.until("the end", |group| group["lag_records"] == 0);
    assert_eq!(end["forced_hand_overs"], 0, "{end}");
    a.terminate();
    b.terminate();
    let (a, b) = (a.wait(), b.wait());
    let printed: BTreeSet<&str> = whole(&a.out).chain(whole(&b.out)).collect();
    let missing = whole(&all).filter(|line| !printed.contains(line)).count();
    assert_eq!(missing, 0);
    // Again only what the paused one had in hand.
    let twice = whole(&a.out).count() + whole(&b.out).count() - printed.len();
    assert!(
        twice < 20_000 / 2,
        "{twice} of {} came twice",
        printed.len()
    );
}

/// The broker dies and comes back while a member reads: it keeps its shards, and what it has printed
/// is not printed again.
#[test]
fn a_restart_of_the_broker_is_ridden_out_without_a_repeat() {
    let mut stage = Stage::set();
    let all = lines(6_000);
    let (first, second) = all.split_at(all.len() / 2);
    let a = stage.start(
        "consume s --group g --follow --member a --format %d\\n",
        b"",
    );
    stage.until("four shards", |group| held(group, "a") == 4);
    stage
        .flumen("produce s --key random", first.as_bytes())
        .good();
    let before = stage.until("a checkpoint", |group| group["lag_records"] != 3_000);
    let endpoint = stage.broker.endpoint.clone();
    stage.broker.kill();
    stage.broker = BrokerProcess::start_again(&stage.path().join("data"), &endpoint);
    stage
        .flumen("produce s --key random", second.as_bytes())
        .good();
    let after = stage.until("the end", |group| {
        group["lag_records"] == 0 && held(group, "a") == 4
    });
    assert_eq!(generations(&before), generations(&after));
    a.terminate();
    let mut printed: Vec<_> = a.wait().good().lines().map(str::to_owned).collect();
    printed.sort_unstable();
    assert_eq!(printed, all.lines().collect::<Vec<_>>());
}

/// Nobody takes what a member prints, for longer than its session timeout: it stays a member.
#[test]
fn a_reader_that_is_slow_costs_no_lease() {
    let stage = Stage::set();
    let wide: String = lines(20_000).replace('\n', &format!("{:90}\n", ""));
    stage
        .flumen("produce s --key random", wide.as_bytes())
        .good();
    let words = stage.words("consume s --group g --member a --session-timeout 1s");
    let mut child = Command::new(env!("CARGO_BIN_EXE_flumen"))
        .args(words.split_whitespace())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let granted = stage.until("four shards", |group| held(group, "a") == 4);
    let begun = Instant::now();
    // Two session timeouts long, whenever somebody looks.
    while begun.elapsed() < Duration::from_secs(2) {
        let now = stage.describe();
        assert_eq!((held(&now, "a"), &now["members"]), (4, &1.into()), "{now}");
        assert_eq!(generations(&now), generations(&granted));
    }
    let mut out = String::new();
    let mut stdout = child.stdout.take().expect("its output");
    stdout.read_to_string(&mut out).expect("text");
    assert_eq!(child.wait().expect("its end").code(), Some(0));
    assert_eq!(out.lines().count(), 20_000);
    assert_eq!(stage.lag(), 0);
}

/// What was there at the beginning is done when the members together have done it.
#[test]
fn members_that_do_not_follow_end_together() {
    let stage = Stage::set();
    let all = lines(5_000);
    stage
        .flumen("produce s --key random", all.as_bytes())
        .good();
    let members = [(); 3].map(|()| stage.start("consume s --group g", b""));
    let mut printed = Vec::new();
    for member in members {
        printed.extend(member.wait().good().lines().map(str::to_owned));
    }
    printed.sort_unstable();
    assert_eq!(printed, all.lines().collect::<Vec<_>>());
    let group = stage.describe();
    assert_eq!(
        (&group["members"], &group["lag_records"]),
        (&0.into(), &0.into())
    );
}

/// A member whose place is taken, or whose group or stream is deleted, ends with one line that says so.
#[test]
fn a_member_that_is_put_out_says_why_in_one_line() {
    let stage = Stage::set();
    let join = |instance: &str| {
        let member = stage.start("consume s --group g --follow --member m", b"");
        stage.until(instance, |group| {
            held(group, "m") == 4 && group["member_list"][0]["connected"] == true
        });
        member
    };
    let first = join("the first");
    let before = stage.describe();
    let second = stage.start("consume s --group g --follow --member m", b"");
    first
        .wait()
        .refused(1, "another instance has joined as this member");
    let after = stage.until("the second", |group| {
        held(group, "m") == 4 && group["member_list"][0]["connected"] == true
    });
    let both = generations(&before).into_iter().zip(generations(&after));
    for (old, new) in both {
        assert!(old.as_u64() < new.as_u64(), "{before} {after}");
    }
    // Held by a member: not without force.
    stage.flumen("group delete s g", b"").refused(1, "--force");
    stage
        .flumen("group reset s g --to latest", b"")
        .refused(1, "--force");
    stage.flumen("group delete s g --force", b"").good();
    second.wait().refused(1, "stream s has no group g");
    let third = join("the third");
    stage.flumen("stream delete s", b"").good();
    third.wait().refused(1, "stream s does not exist");
    stage
        .flumen("consume s --group g", b"")
        .refused(1, "does not exist");
}

/// A reset goes back, also under a member that reads: what it moves is read again from there.
#[test]
fn a_forced_reset_reads_again() {
    let stage = Stage::set();
    let all = lines(500);
    stage
        .flumen("produce s --key random", all.as_bytes())
        .good();
    let member = stage.start("consume s --group g --follow --member m", b"");
    let at_end = |group: &Value| group["lag_records"] == 0 && held(group, "m") == 4;
    let before = stage.until("the end", at_end);
    stage
        .flumen("group reset s g --to trim-horizon --force", b"")
        .good();
    stage.until("the end again", |group| {
        at_end(group) && generations(group) != generations(&before)
    });
    member.terminate();
    let ran = member.wait();
    assert_eq!(
        ran.err.matches("the group was reset").count(),
        1,
        "{}",
        ran.err
    );
    let mut printed: Vec<_> = ran.good().lines().map(str::to_owned).collect();
    printed.sort_unstable();
    let twice: Vec<_> = all.lines().flat_map(|line| [line, line]).collect();
    assert_eq!(printed, twice);
}

#[test]
fn what_is_asked_for_is_printed_and_checkpointed_exactly() {
    let stage = Stage::set();
    let all = lines(1_000);
    stage
        .flumen("produce s --key random", all.as_bytes())
        .good();
    let mut printed = Vec::new();
    for (words, many, lag) in [
        ("--max 0", 0, None),
        ("--max 1", 1, Some(999)),
        ("--max 333", 333, Some(666)),
        ("--max 600 --follow", 600, Some(66)),
        ("--max 100", 66, Some(0)),
        ("", 0, Some(0)),
    ] {
        let out = stage
            .flumen(&format!("consume s --group g {words}"), b"")
            .good();
        assert_eq!(out.lines().count(), many, "{words}");
        printed.extend(out.lines().map(str::to_owned));
        if let Some(lag) = lag {
            assert_eq!(stage.lag(), lag, "{words}");
        }
    }
    printed.sort_unstable();
    assert_eq!(printed, all.lines().collect::<Vec<_>>());
    // A new group that begins at the end has nothing to print, another one everything.
    let latest = stage
        .flumen("consume s --group late --from latest", b"")
        .good();
    assert_eq!(latest, "");
    let json = stage
        .flumen("--output json consume s --group json --from -1h", b"")
        .good();
    assert_eq!(json.lines().count(), 1_000);
}

#[test]
fn what_nobody_could_read_is_not_checkpointed() {
    let stage = Stage::set();
    stage
        .flumen("produce s --key random", lines(1_000).as_bytes())
        .good();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flumen"));
    let words = stage.words("consume s --group g --follow");
    let mut child = command
        .args(words.split_whitespace())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    // It ends by itself, quietly, and in order.
    assert_eq!(child.wait().expect("its end").code(), Some(0));
    let group = stage.describe();
    assert_eq!(
        (&group["members"], &group["lag_records"]),
        (&0.into(), &1_000.into())
    );
    let shards = group["shard_map"].as_array().expect("shards");
    assert!(
        shards
            .iter()
            .all(|shard| shard["sequence_number"].is_null()),
        "{group}"
    );
}

#[test]
fn lag_of_groups_is_on_the_metrics_page() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["console.group_lags_max=2"];
    let broker = BrokerProcess::start_with(&dir.path().join("data"), &settings);
    let at = format!("--endpoint {}", broker.endpoint);
    let flumen = |words: &str, input: &[u8]| run(dir.path(), &format!("{at} {words}"), input);
    flumen("stream create s --shards 2", b"").good();
    flumen("produce s", b"a\nb\nc\n").good();
    for group in ["one", "two", "three"] {
        flumen(&format!("consume s --group {group} --max 1"), b"").good();
    }
    let page = broker.get("/metrics");
    let value = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("{name} is missing in\n{page}"));
        line.trim().parse::<f64>().expect("a number")
    };
    for (name, expected) in [
        ("flumen_groups", 3.0),
        ("flumen_group_sessions", 0.0),
        ("flumen_groups_failed", 0.0),
        ("flumen_group_checkpoints_total", 3.0),
        ("flumen_group_leases_granted_total", 6.0),
        ("flumen_group_leases_lost_total", 0.0),
        // By name: `two` is left out.
        ("flumen_group_lags_left_out", 1.0),
        ("flumen_group_lag_records{stream=\"s\",group=\"one\"}", 2.0),
        (
            "flumen_group_lag_records{stream=\"s\",group=\"three\"}",
            2.0,
        ),
    ] {
        assert!((value(name) - expected).abs() < 0.5, "{name} in\n{page}");
    }
    assert!(value("flumen_group_rounds_total") >= 9.0, "{page}");
    assert!(value("flumen_group_lag_bytes{stream=\"s\",group=\"one\"}") > 0.0);
    assert!(value("flumen_group_lag_seconds{stream=\"s\",group=\"one\"}") > 0.0);
    let shard = |n: u32| {
        let labels = format!("{{stream=\"s\",group=\"one\",shard=\"{n}\"}}");
        value(&format!("flumen_group_shard_lag_records{labels}"))
    };
    let of_shards: f64 = (0..2).map(shard).sum();
    assert!((of_shards - 2.0).abs() < 0.5, "{page}");
    assert!(value("flumen_group_shard_lags_left_out") < 0.5, "{page}");
    assert!(!page.contains("group=\"two\""), "{page}");
}
