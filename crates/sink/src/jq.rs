//! jq filters, as of jq 1.6, run by jaq within bounds.
//!
//! A run has at most [`MAX_OUTPUTS`] outputs, [`MAX_STEPS`] steps, [`MAX_STACK_BYTES`] of stack,
//! values nested [`MAX_NESTING`] deep and [`MAX_TEXT_BYTES`] of text in a value; what breaks a bound
//! ends the run, and `try` does not catch it (`meter`). So an endless filter ends. A step is at most
//! one pass over one value (a sort, a comparison, a regular expression over a text), so what remains
//! is that a filter that does a million such passes over a large record is slow; and one step can take
//! memory of some fifty times the size of its input (`split("")`).
//!
//! **Not there**: `input`, `inputs`, `env`, `$ENV`, `halt`, `halt_error`, `localtime`,
//! `strflocaltime`, modules, SQL operators, streaming (`tostream`),
//! `$__loc__`, `input_line_number`. `debug` and `stderr` do nothing. `now` is there, and
//! makes a filter not deterministic.
//!
//! A definition that calls itself may take values (`$x`), not filters (`recursion`).
//!
//! **Variables**: `$partition_key`, `$shard` (number), `$sequence_number` (decimal text), `$arrival_time`
//! (RFC 3339), `$headers` (object).
//!
//! **Other than jq 1.6**:
//! - Integers keep every digit, of any size; jq has floating point only. Beyond 4096 bits they
//!   become floating point. Other numbers are written as jq does.
//! - Numbers of more than 1000 digits are refused.
//! - A lone surrogate (`"\ud800"`) is refused where jq puts U+FFFD.
//! - `(1,2) * (3,4)` and other operators with several outputs on both sides have them in another
//!   order.
//! - `@uri` escapes `!'()*`, as later versions of jq do.
//! - `.[9] = 1` beyond the end of an array is an error; objects that are not there are made.
//! - Updates (`|=`) with several outputs take the first for objects and all for arrays.
//! - Regular expressions are those of Rust's crates, without look-around.

mod meter;
mod recursion;
mod value;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use jaq_core::load::lex::Lexer;
use jaq_core::load::parse::{Def, Parser, Term};
use jaq_core::load::{Arena, File, Loader};
use jaq_core::native::{Fun, bome};
use jaq_core::{Compiler, Ctx, Error, Native, Vars};
use jaq_json::Val;

use crate::unit::Unit;
use flumen_broker::SettingRefused;
use meter::{Broken, Meter, Metered};
pub(crate) use meter::{MAX_STACK_BYTES, MAX_STEPS};
pub(crate) use value::{MAX_NESTING, MAX_TEXT_BYTES};
pub(crate) use value::{check_bounds, number_text, parse, write};

/// Outputs of one run.
pub(crate) const MAX_OUTPUTS: usize = 1000;
/// Bytes of a filter.
const MAX_FILTER_BYTES: usize = 8 << 10;
/// Words and signs of a filter.
const MAX_FILTER_TOKENS: usize = 1000;
/// Levels of a filter: terms within terms, stages of a pipe, fields of an object.
const MAX_FILTER_DEPTH: usize = 128;
/// Stack of the thread that compiles a filter, which recurses.
const COMPILE_STACK_BYTES: usize = 64 << 20;
/// The definition that the filter becomes.
const MAIN: &str = "flumen__filter";
/// Natives and definitions that are not there, or are ours.
const WITHHELD: [&str; 15] = [
    "debug_empty",
    "env",
    "fromjson",
    "halt",
    "halt_error",
    "input",
    "inputs",
    "localtime",
    "range/3",
    "stderr_empty",
    "strflocaltime",
    "tojson",
    "tostring",
    "debug",
    "stderr",
];
/// The variables every filter has.
const GLOBALS: [&str; 5] = [
    "$partition_key",
    "$shard",
    "$sequence_number",
    "$arrival_time",
    "$headers",
];

/// A filter has failed on a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JqFailed {
    /// jq's own errors.
    #[error("{what}")]
    Error {
        /// As jq says it, cut to a bound.
        what: String,
    },
    /// Further outputs than allowed.
    #[error("more than {MAX_OUTPUTS} outputs")]
    Outputs,
    /// Further steps than allowed.
    #[error("more than {MAX_STEPS} steps; does it end?")]
    Steps,
    /// Recursion too deep.
    #[error("recursion takes more than {MAX_STACK_BYTES} bytes of stack")]
    Stack,
    /// A value too deep.
    #[error("a value is nested deeper than {MAX_NESTING}")]
    Nesting,
    /// A value too large.
    #[error("a value takes more than {MAX_TEXT_BYTES} bytes")]
    Size,
    /// A fault of the interpreter.
    #[error("the jq interpreter failed on this record")]
    Fault,
}

impl JqFailed {
    /// Stable, for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Error { .. } => "Jq.Failed",
            Self::Outputs => "Jq.TooManyOutputs",
            Self::Steps => "Jq.TooManySteps",
            Self::Stack => "Jq.TooDeep",
            Self::Nesting => "Jq.TooDeep",
            Self::Size => "Jq.TooLarge",
            Self::Fault => "Jq.Fault",
        }
    }
}

impl From<Broken> for JqFailed {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Steps => Self::Steps,
            Broken::Stack => Self::Stack,
            Broken::Nesting => Self::Nesting,
            Broken::Size => Self::Size,
        }
    }
}

/// What filters know of a record besides its data, in the order of [`GLOBALS`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Globals([Val; 5]);

impl Globals {
    /// Of a record.
    pub(crate) fn of(unit: &Unit) -> Self {
        let headers = unit.headers.iter().map(|header| {
            let (name, value) = (header.name.clone(), header.value.clone());
            (Val::utf8_str(name), Val::utf8_str(value))
        });
        Self([
            Val::utf8_str(unit.partition_key.clone()),
            Val::from(unit.shard.value() as usize),
            Val::from(unit.sequence.to_string()),
            Val::from(unit.arrival.to_string()),
            Val::obj(headers.collect()),
        ])
    }
}

/// A compiled filter. Send and Sync. A run wants 1.5 MiB of stack, of the 2 MiB that threads have.
pub(crate) struct Filter {
    filter: jaq_core::Filter<Metered>,
    deterministic: bool,
    uses_globals: bool,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("deterministic", &self.deterministic)
            .field("uses_globals", &self.uses_globals)
            .finish_non_exhaustive()
    }
}

impl Filter {
    /// Compiles `text`, the value of `setting`.
    pub(crate) fn compile(setting: &'static str, text: &str) -> Result<Self, SettingRefused> {
        let refused = |reason: String| SettingRefused::new(setting, reason);
        if text.len() > MAX_FILTER_BYTES {
            let bytes = text.len();
            return Err(refused(format!(
                "the filter is {bytes} bytes long, of at most {MAX_FILTER_BYTES}"
            )));
        }
        let own = text.to_owned();
        let compiling = std::thread::Builder::new()
            .name("jq-compile".to_owned())
            .stack_size(COMPILE_STACK_BYTES)
            .spawn(move || compile(&own));
        let compiled = compiling.map(std::thread::JoinHandle::join);
        match compiled {
            Ok(Ok(compiled)) => compiled.map_err(refused),
            _ => Err(refused("the filter cannot be compiled".to_owned())),
        }
    }

    /// Its outputs for `value`, all of them.
    pub(crate) fn run(&self, value: Val, globals: &Globals) -> Result<Vec<Val>, JqFailed> {
        let outputs = self.take(value, globals, MAX_OUTPUTS + 1)?;
        if outputs.len() > MAX_OUTPUTS {
            return Err(JqFailed::Outputs);
        }
        Ok(outputs)
    }

    /// Its first output for `value`; what would come after it is not computed.
    pub(crate) fn first(&self, value: Val, globals: &Globals) -> Result<Option<Val>, JqFailed> {
        Ok(self.take(value, globals, 1)?.pop())
    }

    fn take(&self, value: Val, globals: &Globals, most: usize) -> Result<Vec<Val>, JqFailed> {
        // jaq is third-party code that works on data of strangers: a fault in it costs a record.
        catch_unwind(AssertUnwindSafe(|| {
            let meter = Meter::new(&self.filter.lut);
            let ctx = Ctx::<Metered>::new(&meter, Vars::new(globals.0.clone()));
            let outputs = self.filter.id.run((ctx, value)).take(most);
            outputs.map(|output| output.map_err(failed)).collect()
        }))
        .unwrap_or(Err(JqFailed::Fault))
    }

    /// Whether equal records have equal outputs, always.
    pub(crate) fn is_deterministic(&self) -> bool {
        self.deterministic
    }

    /// Whether it looks at its variables, so that [`Globals`] are worth making.
    pub(crate) fn uses_globals(&self) -> bool {
        self.uses_globals
    }
}

fn failed(thrown: jaq_core::Exn<'_, Val>) -> JqFailed {
    match thrown.get_err() {
        Ok(error) => JqFailed::Error {
            what: error_text(error),
        },
        Err(thrown) => thrown
            .get_halt()
            .map_or(JqFailed::Fault, |code| Broken::from_code(code).into()),
    }
}

/// What an error says, cut: errors hold the values that they are about.
fn error_text(error: Error<Val>) -> String {
    use std::fmt::Write as _;
    const MAX: usize = 512;
    struct Cut(String);
    impl fmt::Write for Cut {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.push_str(text);
            if self.0.len() > MAX {
                Err(fmt::Error)
            } else {
                Ok(())
            }
        }
    }
    let mut text = Cut(String::new());
    // An error is what stops the writing.
    let whole = write!(text, "{error}").is_ok();
    let end = text.0.floor_char_boundary(MAX);
    if !whole {
        text.0.truncate(end);
        text.0.push('…');
    }
    text.0
}

/// Compiles on a thread of its own.
fn compile(text: &str) -> Result<Filter, String> {
    let tokens = Lexer::new(text).lex().map_err(|errors| {
        let first = errors.into_iter().next();
        first.map_or_else(String::new, |(expected, at)| {
            let expected = expected.as_str();
            format!("{expected} expected {}", place(text, at))
        })
    })?;
    if count(&tokens) > MAX_FILTER_TOKENS {
        return Err(format!(
            "the filter has more than {MAX_FILTER_TOKENS} words and signs"
        ));
    }
    let term = Parser::new(&tokens).parse(|parser| parser.term());
    let term = term.map_err(|errors| {
        let first = errors.into_iter().next();
        first.map_or_else(String::new, |(expected, found)| {
            let at = found.map_or("", |token| token.0);
            format!("{} expected {}", expected.as_str(), place(text, at))
        })
    })?;
    if recursion::depth(&term) > MAX_FILTER_DEPTH {
        return Err(format!(
            "the filter has more than {MAX_FILTER_DEPTH} terms within each other, stages of a pipe or fields"
        ));
    }
    if let Some(name) = recursion::hands_on(&term, &mut Vec::new()) {
        return Err(format!(
            "{name} hands a filter to itself {}: write def {name}(f): def r: … f … r; r",
            place(text, name)
        ));
    }
    let written = format!("{term:?}");
    let deterministic = !written.contains("Call(\"now\"");
    let uses_globals = GLOBALS.iter().any(|name| written.contains(name));
    let filter = compile_term(text, term)?;
    Ok(Filter {
        filter,
        deterministic,
        uses_globals,
    })
}

fn count(tokens: &[jaq_core::load::lex::Token<&str>]) -> usize {
    use jaq_core::load::lex::{StrPart, Tok};
    let of = |token: &jaq_core::load::lex::Token<&str>| match &token.1 {
        Tok::Block(inner) => count(inner),
        Tok::Str(parts) => {
            let inner = parts.iter().map(|part| match part {
                StrPart::Term(token) => count(std::slice::from_ref(token)),
                _ => 0,
            });
            inner.sum()
        }
        _ => 0,
    };
    tokens.iter().map(|token| 1 + of(token)).sum()
}

fn compile_term<'s>(
    text: &'s str,
    term: Term<&'s str>,
) -> Result<jaq_core::Filter<Metered>, String> {
    let main = Def {
        name: MAIN,
        args: Vec::new(),
        body: term,
    };
    let theirs = jaq_core::defs()
        .chain(jaq_std::defs())
        .chain(jaq_json::defs());
    let theirs = theirs.filter(|def| !WITHHELD.contains(&def.name));
    let ours = jaq_core::load::parse(include_str!("jq/defs.jq"), |parser| parser.defs());
    let ours = ours.unwrap_or_default();
    let shorter = |def: Def<&'static str>| -> Def<&'s str> { def };
    let defs = theirs.chain(ours).map(shorter).chain([main]);
    let defs = defs.map(meter::metered_def);
    let arena = Arena::default();
    let file = File {
        code: MAIN,
        path: (),
    };
    let modules = Loader::new(defs).load(&arena, file);
    let modules = modules.map_err(|_never| "the filter cannot be loaded".to_owned())?;
    let theirs = jaq_core::funs()
        .chain(jaq_std::funs())
        .chain(jaq_json::funs());
    let theirs = theirs.filter(|fun: &Fun<Metered>| !withheld(fun));
    let compiler = Compiler::default()
        .with_funs(theirs.chain(meter::natives()).chain(conversions()))
        .with_global_vars(GLOBALS);
    compiler.compile(modules).map_err(|errors| {
        let first = errors.into_iter().flat_map(|(_file, errors)| errors).next();
        first.map_or_else(String::new, |(name, kind)| undefined(text, name, kind))
    })
}

fn withheld(fun: &Fun<Metered>) -> bool {
    let with_arity = format!("{}/{}", fun.0, fun.1.len());
    WITHHELD.contains(&fun.0) || WITHHELD.contains(&with_arity.as_str())
}

fn undefined(text: &str, name: &str, kind: jaq_core::compile::Undefined) -> String {
    let hint = match name {
        "input" | "inputs" | "env" | "$ENV" | "halt" | "halt_error" | "localtime"
        | "strflocaltime" => ", which delivery streams do not have",
        _ => "",
    };
    let at = place(text, name);
    format!("undefined {} {name}{hint} {at}", kind.as_str())
}

/// Where `part`, a slice of `text`, stands.
fn place(text: &str, part: &str) -> String {
    let at = (part.as_ptr().addr()).wrapping_sub(text.as_ptr().addr());
    match text.get(..at) {
        Some(before) if !part.is_empty() => {
            let near: String = part.chars().take(20).collect();
            format!(
                "at character {}, before {near:?}",
                before.chars().count() + 1
            )
        }
        _ => "at the end".to_owned(),
    }
}

/// Natives that take the place of jaq's: numbers as jq writes them, and JSON within bounds.
fn conversions() -> [Fun<Metered>; 4] {
    let none = || Box::new([]);
    let text = || {
        Native::new(|cv| match cv.1 {
            Val::TStr(_) => bome(Ok(cv.1)),
            value => bome(to_json(&value)),
        })
    };
    [
        ("tojson", none(), Native::new(|cv| bome(to_json(&cv.1)))),
        ("tostring", none(), text()),
        // A filter may define a `tostring` of its own, and texts with `\(…)` do not mean that.
        ("!text", none(), text()),
        ("fromjson", none(), Native::new(|cv| bome(from_json(&cv.1)))),
    ]
}

fn to_json(value: &Val) -> jaq_json::ValR {
    write(value).map(Val::utf8_str).map_err(Error::str)
}

fn from_json(value: &Val) -> jaq_json::ValR {
    match value {
        Val::TStr(text) => parse(text).map_err(Error::str),
        _ => Err(Error::str("only text can be read as JSON")),
    }
}

#[cfg(test)]
mod tests;
