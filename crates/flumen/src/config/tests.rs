//! Precedence, origins and refusals of settings.

use super::*;

fn laid(
    file: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Layers, ConfigError> {
    let mut layers = Layers::defaults(&Config::default());
    layers.file(Path::new("flumen.toml"), file)?;
    let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    layers.environment(environment.iter().map(own))?;
    for (key, value) in flags {
        layers.text(key, value, &Origin::Flag("--set".to_owned()))?;
    }
    Ok(layers)
}

fn refusal(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> String {
    let laid = laid(file, environment, flags).and_then(|layers| layers.config());
    laid.and_then(|config| check(&config))
        .expect_err("it is refused")
        .to_string()
}

#[test]
fn flags_go_over_the_environment_over_the_file_over_defaults() {
    let file = "data_dir = \"file\"\nlog = \"warn\"\n[broker]\nround_bytes_max = 1\n[broker.log]\nhot_window_bytes = \"1MiB\"\n";
    let environment = [
        ("FLUMEN_LOG", "debug"),
        ("FLUMEN_BROKER__ROUND_BYTES_MAX", "2MiB"),
    ];
    let layers = laid(file, &environment, &[("broker.round_bytes_max", "3")]).unwrap();
    let config = layers.config().unwrap();
    assert_eq!(config.data_dir, PathBuf::from("file"));
    assert_eq!(config.log, "debug");
    assert_eq!(config.broker.round_bytes_max, 3);
    assert_eq!(config.broker.log.hot_window_bytes, 1 << 20);
    assert_eq!(
        config.broker.lanes_per_class,
        BrokerConfig::default().lanes_per_class
    );
    let settings = layers.into_settings();
    let origin = |wanted: &str| {
        let found = settings.iter().find(|(key, ..)| key == wanted).unwrap();
        found.2.to_string()
    };
    assert_eq!(origin("data_dir"), "flumen.toml");
    assert_eq!(origin("log"), "FLUMEN_LOG");
    assert_eq!(origin("broker.round_bytes_max"), "--set");
    assert_eq!(origin("listen_console"), "default");
}

#[test]
fn what_is_not_a_setting_is_an_error_that_says_where() {
    for (file, environment, expected) in [
        (
            "data_dri = \"x\"",
            None,
            "flumen.toml: there is no setting data_dri; did you mean data_dir?",
        ),
        (
            "[nonsense]\na = 1",
            None,
            "flumen.toml: there is no setting nonsense.a; `flumen config show`",
        ),
        (
            "[broker]\nround_bytes_max = \"many\"",
            None,
            "flumen.toml: broker.round_bytes_max = many: not a size",
        ),
        (
            "[broker]\nround_bytes_max = -1",
            None,
            "flumen.toml: broker.round_bytes_max = -1: not a whole number",
        ),
        ("dev = 3", None, "flumen.toml: dev = "),
        ("a = = 1", None, "flumen.toml: line 1: "),
        (
            "",
            Some(("FLUMEN_DATA_DRI", "x")),
            "FLUMEN_DATA_DRI: there is no setting data_dri; did you mean data_dir?",
        ),
        (
            "",
            Some(("FLUMEN_LISTEN_CONSOLE", "home")),
            "FLUMEN_LISTEN_CONSOLE: listen_console = ",
        ),
        (
            "",
            Some(("FLUMEN_LOG_FORMAT", "xml")),
            "FLUMEN_LOG_FORMAT: log_format = ",
        ),
    ] {
        let environment: Vec<_> = environment.into_iter().collect();
        let refusal = refusal(file, &environment, &[]);
        assert!(refusal.starts_with(expected), "{refusal}");
    }
}

#[test]
fn foreign_variables_and_the_commands_own_are_left_alone() {
    let environment = [
        ("FLUMEN_ENDPOINT", "http://127.0.0.1:1"),
        ("FLUMEN_TEST_SEED", "7"),
        ("FLUMEN_PORT_4500_TCP_ADDR", "10.0.0.1"),
        ("FLUMEN_SERVICE_HOST", "10.0.0.1"),
        ("HOME", "/root"),
    ];
    assert_eq!(
        laid("", &environment, &[]).unwrap().config().unwrap(),
        Config::default()
    );
}

#[test]
fn an_address_off_loopback_is_refused_and_the_refusal_says_what_is_missing() {
    for flags in [
        [("listen_grpc", "0.0.0.0:4500"), ("dev", "true")],
        [("listen_console", "192.168.1.2:4580"), ("dev", "false")],
        [("listen_grpc", "[::]:4500"), ("dev", "false")],
    ] {
        let refusal = refusal("", &[], &flags);
        assert!(
            refusal.contains("neither TLS nor authentication"),
            "{refusal}"
        );
    }
    let loopback = [
        ("listen_grpc", "127.0.0.2:0"),
        ("listen_console", "[::1]:4580"),
    ];
    assert!(check(&laid("", &[], &loopback).unwrap().config().unwrap()).is_ok());
}

#[test]
fn optional_settings_take_a_value() {
    let flags = [
        ("broker.log.free_space_floor_bytes", "1GiB"),
        ("worker_threads", "2"),
    ];
    let config = laid("", &[], &flags).unwrap().config().unwrap();
    assert_eq!(config.broker.log.free_space_floor_bytes, Some(1 << 30));
    assert_eq!(config.worker_threads, NonZeroUsize::new(2));
    assert!(refusal("", &[], &[("worker_threads", "0")]).contains("worker_threads = "));
}

#[test]
fn settings_of_groups_come_from_every_layer_and_have_bounds() {
    let file = "[broker.groups]\nsession_timeout_ms = \"20s\"\nmembers_per_group_max = 50\n";
    let environment = [("FLUMEN_BROKER__GROUPS__DRAIN_DEADLINE_MS", "5s")];
    let flags = [("broker.groups.groups_max", "7")];
    let config = laid(file, &environment, &flags).unwrap().config().unwrap();
    let groups = &config.broker.groups;
    assert_eq!(
        (groups.session_timeout_ms, groups.members_per_group_max),
        (20_000, 50)
    );
    assert_eq!((groups.drain_deadline_ms, groups.groups_max), (5_000, 7));
    assert!(check(&config).is_ok());
    for (key, value, says) in [
        ("groups_max", "0", "1 to 1000000"),
        ("members_per_group_max", "0", "1 to 100000"),
        ("session_timeout_ms", "10", "1000 to 300000"),
        ("session_timeout_ms", "10m", "1000 to 300000"),
        ("session_timeout_ms_min", "5m1s", "not a duration"),
        ("session_timeout_ms_min", "6m", "100 to 300000"),
        ("session_timeout_ms_max", "2h", "1000 to 3600000"),
        ("drain_deadline_ms", "0", "100 to 3600000"),
        ("shard_weight", "0", "1 to "),
        ("snapshot_growth", "0", "1 to 1000"),
        ("snapshot_bytes_min", "1", "4096 to "),
        ("snapshot_piece_bytes", "1GiB", "4096 to 4194304"),
    ] {
        let key = format!("broker.groups.{key}");
        let refusal = refusal("", &[], &[(&key, value)]);
        assert!(
            refusal.contains(&key) && refusal.contains(says),
            "{key} = {value}: {refusal}"
        );
    }
}
