//! The node's settings: the crates' own structs composed, from flags over `FLUMEN_*` over
//! `flumen.toml` over defaults, checked once.

mod layers;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use flumen_broker::BrokerConfig;
use flumen_console::ConsoleConfig;
use flumen_grpc::GrpcConfig;
use flumen_sink::SinkConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

pub(crate) use layers::{Layers, Origin};

use crate::telemetry::LogFormat;

/// The file that is read when none is named and it is there.
const DEFAULT_FILE: &str = "flumen.toml";

/// Everything that can be set about a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where the logs are.
    pub(crate) data_dir: PathBuf,
    /// Where gRPC is served. Port 0 takes a free one.
    pub(crate) listen_grpc: SocketAddr,
    /// Where metrics and health are served. Port 0 takes a free one.
    pub(crate) listen_console: SocketAddr,
    /// No authentication. Refused off loopback.
    pub(crate) dev: bool,
    /// Which log lines appear: `info`, or `warn,flumen_log=debug`.
    pub(crate) log: String,
    /// How log lines look.
    pub(crate) log_format: LogFormat,
    /// Threads of the async runtime; unset: as measured best for this machine.
    pub(crate) worker_threads: Option<NonZeroUsize>,
    /// The running node.
    pub(crate) broker: BrokerConfig,
    /// The gRPC edge.
    pub(crate) grpc: GrpcConfig,
    /// The metrics and health edge.
    pub(crate) console: ConsoleConfig,
    /// Delivery streams.
    pub(crate) sink: SinkConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./flumen-data"),
            listen_grpc: SocketAddr::from((Ipv4Addr::LOCALHOST, 4500)),
            listen_console: SocketAddr::from((Ipv4Addr::LOCALHOST, 4580)),
            dev: false,
            log: "info".to_owned(),
            log_format: LogFormat::Auto,
            worker_threads: None,
            broker: BrokerConfig::default(),
            grpc: GrpcConfig::default(),
            console: ConsoleConfig::default(),
            sink: SinkConfig::default(),
        }
    }
}

/// Why settings are refused.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// The file is not there or cannot be read.
    #[error("{}: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {reason}", file.display())]
    Syntax {
        /// Which.
        file: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// No such setting.
    #[error("{origin}: there is no setting {key}{}", suggestion(nearest.as_ref()))]
    UnknownKey {
        /// What was set.
        key: String,
        /// Where.
        origin: Origin,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// A value that does not fit its setting.
    #[error("{origin}: {key} = {value}: {reason}")]
    Value {
        /// Which setting.
        key: String,
        /// What was given.
        value: String,
        /// Where.
        origin: Origin,
        /// Why it does not fit.
        reason: String,
    },
    /// A setting of the broker outside its bounds, or that does not fit another one.
    #[error("broker.{0}")]
    Broker(#[from] flumen_broker::SettingError),
    /// An address others can reach.
    #[error(
        "{key} = {address} can be reached from outside, and this version has neither TLS nor \
         authentication: use a loopback address such as 127.0.0.1:{}", address.port()
    )]
    NotLoopback {
        /// Which setting.
        key: &'static str,
        /// Its address.
        address: SocketAddr,
    },
}

fn suggestion(nearest: Option<&String>) -> String {
    match nearest {
        Some(key) => format!("; did you mean {key}?"),
        None => "; `flumen config show` lists all settings".to_owned(),
    }
}

/// What the command line says about settings: key and value, and the flag that said it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags {
    /// A configuration file.
    pub(crate) file: Option<PathBuf>,
    /// Settings, strongest last.
    pub(crate) settings: Vec<(String, String, String)>,
}

/// Settings with where each came from.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// What holds.
    pub(crate) config: Config,
    /// Every setting: key, value, origin.
    pub(crate) settings: Vec<(String, Value, Origin)>,
}

/// Reads all layers and checks them. `environment` are the process's variables.
pub(crate) fn resolve(
    flags: &Flags,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Resolved, ConfigError> {
    let mut layers = Layers::defaults(&Config::default());
    let environment: Vec<_> = environment.into_iter().collect();
    let named = flags.file.clone().or_else(|| {
        let named = environment.iter().find(|(name, _)| name == "FLUMEN_CONFIG");
        named.map(|(_, file)| PathBuf::from(file))
    });
    match named {
        Some(file) => layers.file(&file, &read(&file)?)?,
        None if Path::new(DEFAULT_FILE).exists() => {
            let file = PathBuf::from(DEFAULT_FILE);
            layers.file(&file, &read(&file)?)?;
        }
        None => {}
    }
    layers.environment(environment)?;
    for (key, value, flag) in &flags.settings {
        layers.text(key, value, &Origin::Flag(flag.clone()))?;
    }
    let config = layers.config()?;
    check(&config)?;
    Ok(Resolved {
        config,
        settings: layers.into_settings(),
    })
}

fn read(file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file).map_err(|source| ConfigError::File {
        file: file.to_owned(),
        source,
    })
}

/// What no single setting shows.
fn check(config: &Config) -> Result<(), ConfigError> {
    config.broker.check()?;
    let listeners = [
        ("listen_grpc", config.listen_grpc),
        ("listen_console", config.listen_console),
    ];
    for (key, address) in listeners {
        if !address.ip().is_loopback() {
            return Err(ConfigError::NotLoopback { key, address });
        }
    }
    Ok(())
}
