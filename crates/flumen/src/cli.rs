//! The command tree and the flags that all commands share.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use flumen_client::{Client, ClientConfig};

use crate::command;
use crate::failure::{conclude, of_client};
use crate::output::{ColorChoice, Output, OutputFormat, complain, help};

/// Where a broker is looked for when nobody says.
pub(crate) const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:4500";

#[derive(Debug, Parser)]
#[command(
    name = "flumen",
    version,
    about = "Flumen: a durable streaming broker in one binary",
    after_help = "Try it: flumen demo. Sizes are typed as 64KiB, durations as 250ms or 7d.",
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, clap::Args)]
struct Global {
    /// The broker's gRPC address [default: http://127.0.0.1:4500]
    #[arg(
        long,
        global = true,
        env = "FLUMEN_ENDPOINT",
        hide_env = true,
        value_name = "URL"
    )]
    endpoint: Option<String>,
    /// Results as text for people, or as one JSON object per line
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORM")]
    output: OutputFormat,
    /// No remarks and no progress on standard error
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Colours
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: ColorChoice,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker
    Serve(command::serve::Args),
    /// Show that it works: real telemetry through a broker that is killed on the way
    Demo(command::demo::Args),
    /// Create, list, describe, change and delete streams
    #[command(subcommand)]
    Stream(command::stream::Verb),
    /// Send records from files or standard input
    Produce(command::produce::Args),
    /// Read records
    Consume(command::consume::Args),
    /// Follow a stream from now on: consume --from latest --follow
    Tail(command::consume::TailArgs),
    /// Show, reset and delete consumer groups: consume --group makes one
    #[command(subcommand)]
    Group(command::group::Verb),
    /// Create, list, describe, change, flush and delete delivery streams: records into objects
    #[command(subcommand)]
    Delivery(command::delivery::Verb),
    /// Measure a broker
    #[command(subcommand)]
    Bench(command::bench::Verb),
    /// Check a data directory while no broker runs on it; changes nothing
    Doctor(command::doctor::Args),
    /// Say that the broker's wall clock is right, when it doubts that
    #[command(subcommand)]
    Clock(command::clock::Verb),
    /// Check or show the node's settings
    #[command(subcommand)]
    Config(command::config::Verb),
    /// Print a completion script for a shell
    Completions(command::completions::Args),
}

/// What a command works with.
#[derive(Debug)]
pub(crate) struct Context {
    /// The endpoint that was asked for, if any.
    pub(crate) endpoint: Option<String>,
    /// Where it writes.
    pub(crate) output: Output,
}

impl Context {
    /// The endpoint to use.
    pub(crate) fn endpoint(&self) -> &str {
        self.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT)
    }

    /// A client for it.
    pub(crate) fn client(&self) -> Result<Client> {
        let client = Client::connect(ClientConfig::new(self.endpoint()));
        client.map_err(|error| of_client(error, self.endpoint()))
    }
}

/// The whole command tree, for completions and for tests that walk it.
pub fn command_tree() -> clap::Command {
    Cli::command()
}

/// Parses the arguments, runs the command, and says how it went.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    match Cli::try_parse_from(&arguments) {
        Ok(cli) => conclude(dispatch(cli)),
        Err(error) => refuse(&error, &arguments),
    }
}

fn dispatch(cli: Cli) -> Result<()> {
    let Global {
        endpoint,
        output,
        quiet,
        color,
    } = cli.global;
    let mut context = Context {
        endpoint,
        output: Output::new(output, quiet, color),
    };
    let done = match cli.command {
        Command::Serve(args) => command::serve::run(&mut context, &args),
        Command::Demo(args) => command::demo::run(&mut context, args),
        Command::Stream(verb) => command::stream::run(&mut context, verb),
        Command::Produce(args) => command::produce::run(&mut context, args),
        Command::Consume(args) => command::consume::run(&mut context, args),
        Command::Tail(args) => command::consume::run(&mut context, args.into()),
        Command::Group(verb) => command::group::run(&mut context, verb),
        Command::Delivery(verb) => command::delivery::run(&mut context, verb),
        Command::Bench(verb) => command::bench::run(&mut context, verb),
        Command::Doctor(args) => command::doctor::run(&mut context, &args),
        Command::Clock(verb) => command::clock::run(&mut context, &verb),
        Command::Config(verb) => command::config::run(&mut context, &verb),
        Command::Completions(args) => command::completions::run(&mut context, &args),
    };
    context.output.clear_progress();
    // What was written before a failure is still worth reading.
    let flushed = context.output.flush();
    done?;
    Ok(flushed?)
}

/// Help and version as they are; refusals in one line, with the next thing to try.
fn refuse(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            help(&error.render().to_string(), true);
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            help(&error.render().to_string(), false);
            ExitCode::from(2)
        }
        _ => {
            complain(&format!(
                "{}; try `{} --help`",
                first_lines(error),
                named(arguments)
            ));
            ExitCode::from(2)
        }
    }
}

/// Clap's first paragraph and its tips; its usage and colours left out.
fn first_lines(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut parts = text.split("\n\n");
    let mut line = parts.next().unwrap_or_default().trim().to_owned();
    if let Some(bare) = line.strip_prefix("error: ") {
        line = bare.to_owned();
    }
    let tips = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tip: "));
    for tip in tips {
        line = format!("{line}; {tip}");
    }
    line
}

/// `flumen stream create`: the command that the arguments name, as far as there is one.
fn named(arguments: &[OsString]) -> String {
    let tree = command_tree();
    let mut command = &tree;
    let mut names = vec![command.get_name()];
    for word in arguments
        .iter()
        .skip(1)
        .filter_map(|argument| argument.to_str())
    {
        if let Some(inner) = command.find_subcommand(word) {
            names.push(inner.get_name());
            command = inner;
        }
    }
    names.join(" ")
}
