//! `flumen serve`: a broker until it is asked to end.

use std::path::PathBuf;

use anyhow::Result;

use crate::cli::Context;
use crate::config::{Config, Flags, Resolved, resolve};
use crate::serve;
use crate::telemetry::LogFormat;

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Drain and exit when standard input ends: for whoever starts a broker of its own
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// Settings as flags; each goes over `FLUMEN_*`, `flumen.toml` and the default.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Settings {
    /// Where the logs are [default: ./flumen-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A configuration file [default: ./flumen.toml, when it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// gRPC listener; port 0 takes a free one [default: 127.0.0.1:4500]
    #[arg(long, value_name = "ADDR")]
    listen_grpc: Option<String>,
    /// Metrics and health listener; port 0 takes a free one [default: 127.0.0.1:4580]
    #[arg(long, value_name = "ADDR")]
    listen_console: Option<String>,
    /// No authentication; refused off loopback
    #[arg(long)]
    dev: bool,
    /// Threads of the async runtime
    #[arg(long, value_name = "N")]
    worker_threads: Option<String>,
    /// How log lines look [default: human on a terminal, json otherwise]
    #[arg(long, value_enum, value_name = "FORM")]
    log_format: Option<LogFormat>,
    /// Which log lines appear, as in info or warn,flumen_log=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Any other setting, by its key: --set broker.round_bytes_max=8MiB
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

fn key_and_value(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl Settings {
    /// Settings that only name a data directory.
    pub(crate) fn of_data_dir(data_dir: Option<PathBuf>, config: Option<PathBuf>) -> Self {
        Self {
            data_dir,
            config,
            ..Self::default()
        }
    }

    /// All layers together, checked.
    pub(crate) fn resolve(&self) -> Result<Resolved> {
        // Variables that are not text cannot be ours.
        let environment = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Ok(resolve(&self.flags(), environment)?)
    }

    fn flags(&self) -> Flags {
        let log_format = self.log_format.map(|format| match format {
            LogFormat::Auto => "auto",
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        });
        let data_dir = self
            .data_dir
            .as_ref()
            .map(|dir| dir.to_string_lossy().into_owned());
        let own = [
            ("data_dir", data_dir, "--data-dir"),
            ("listen_grpc", self.listen_grpc.clone(), "--listen-grpc"),
            (
                "listen_console",
                self.listen_console.clone(),
                "--listen-console",
            ),
            ("dev", self.dev.then(|| "true".to_owned()), "--dev"),
            (
                "worker_threads",
                self.worker_threads.clone(),
                "--worker-threads",
            ),
            ("log_format", log_format.map(str::to_owned), "--log-format"),
            ("log", self.log.clone(), "--log"),
        ];
        let owned = |key: &str, value, flag: &str| (key.to_owned(), value, flag.to_owned());
        let own = own.into_iter();
        let own = own.filter_map(|(key, value, flag)| Some(owned(key, value?, flag)));
        let set = self
            .set
            .iter()
            .map(|(key, value)| owned(key, value.clone(), "--set"));
        Flags {
            file: self.config.clone(),
            settings: own.chain(set).collect(),
        }
    }
}

/// Runs the command.
pub(crate) fn run(context: &mut Context, args: &Args) -> Result<()> {
    let config: Config = args.settings.resolve()?.config;
    serve::run(&mut context.output, config, args.until_stdin_closes)
}
