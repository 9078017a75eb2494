//! `flumen completions`: completion scripts.

use anyhow::Result;
use clap_complete::Shell;

use crate::cli::{Context, command_tree};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the command.
pub(crate) fn run(context: &mut Context, args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command_tree(), "flumen", &mut script);
    Ok(context.output.raw(&script)?)
}
