//! What keeps a filter within bounds.
//!
//! jq is a language in which anything can be computed, jaq has no bounds of its own, and a filter
//! must neither hang the node nor take its stack or its memory. So every filter, and jaq's own
//! definitions, are rewritten before they are compiled: `!tick` stands before every call, in every
//! definition and behind everything that can have several outputs, `!nest` behind everything that
//! can make a value larger or deeper. A tick counts, with the size of its input, and looks how much
//! of the stack is used. What breaks a bound halts the filter; `try` does not catch that.

use std::cell::Cell;

use jaq_core::box_iter::box_once;
use jaq_core::data::{DataT, HasLut};
use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Def, Pattern, Term};
use jaq_core::ops::Math;
use jaq_core::path::{Part, Path};
use jaq_core::{Cv, Exn, Lut, Native, ValX};
use jaq_json::{Num, Val};

use super::value::{MAX_NESTING, MAX_TEXT_BYTES};

/// Steps of one run of a filter: about a second of a slow machine.
pub(crate) const MAX_STEPS: u64 = 1_000_000;
/// Stack of one run, in bytes: of the 2 MiB that threads have.
pub(crate) const MAX_STACK_BYTES: usize = 768 << 10;
/// Bits of an integer; beyond that it goes on as floating point.
const MAX_INTEGER_BITS: u64 = 4096;
/// A step, for each so many items or bytes of a value that is passed on.
const SIZE_PER_STEP: usize = 64;

/// The bound that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Broken {
    Steps = 1,
    Stack = 2,
    Nesting = 3,
    Size = 4,
}

impl Broken {
    /// From what a halted filter says.
    pub(crate) fn from_code(code: i32) -> Self {
        match code {
            2 => Self::Stack,
            3 => Self::Nesting,
            4 => Self::Size,
            _ => Self::Steps,
        }
    }

    fn halt<'a>(self) -> Exn<'a, Val> {
        Exn::halt(self as i32)
    }
}

/// What jaq is told about our values: [`Val`], and the meter beside.
pub(crate) struct Metered;

impl DataT for Metered {
    type V<'a> = Val;
    type Data<'a> = &'a Meter<'a>;
}

/// Counts one run of a filter.
pub(crate) struct Meter<'a> {
    lut: &'a Lut<Metered>,
    steps: Cell<u64>,
    /// Where the stack was when the run began.
    stack: usize,
}

impl<'a> HasLut<'a, Metered> for &'a Meter<'a> {
    fn lut(&self) -> &'a Lut<Metered> {
        self.lut
    }
}

impl<'a> Meter<'a> {
    /// A run begins here.
    pub(crate) fn new(lut: &'a Lut<Metered>) -> Self {
        Self {
            lut,
            steps: Cell::new(0),
            stack: stack_now(),
        }
    }

    fn spend(&self, steps: usize) -> Result<(), Broken> {
        let steps = self.steps.get().saturating_add(steps as u64);
        self.steps.set(steps);
        if steps > MAX_STEPS {
            return Err(Broken::Steps);
        }
        if self.stack.abs_diff(stack_now()) > MAX_STACK_BYTES {
            return Err(Broken::Stack);
        }
        Ok(())
    }

    fn tick(&self, value: &Val) -> Result<(), Broken> {
        let size = size_of(value);
        if size > MAX_TEXT_BYTES {
            return Err(Broken::Size);
        }
        self.spend(1 + size / SIZE_PER_STEP)
    }

    /// Looks at all of a value.
    fn nest(&self, value: &Val) -> Result<(), Broken> {
        let (mut open, mut bytes) = (vec![(value, 1)], 0_usize);
        let mut seen = 0_usize;
        while let Some((value, depth)) = open.pop() {
            seen += 1;
            if seen.is_multiple_of(SIZE_PER_STEP) {
                self.spend(1)?;
            }
            bytes = bytes.saturating_add(size_of(value));
            if bytes > MAX_TEXT_BYTES {
                return Err(Broken::Size);
            }
            match value {
                Val::Arr(_) | Val::Obj(_) if depth > MAX_NESTING => return Err(Broken::Nesting),
                Val::Arr(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
                Val::Obj(fields) => {
                    for (key, field) in fields.iter() {
                        open.push((key, depth + 1));
                        open.push((field, depth + 1));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Where the stack is: the address of something on it.
#[inline(never)]
fn stack_now() -> usize {
    let here = 0_u8;
    std::ptr::from_ref(std::hint::black_box(&here)).addr()
}

/// Items or bytes of the value itself, not of what is in it.
fn size_of(value: &Val) -> usize {
    match value {
        Val::BStr(text) | Val::TStr(text) => text.len(),
        Val::Arr(items) => items.len(),
        Val::Obj(fields) => fields.len(),
        Val::Num(Num::BigInt(large)) => usize::try_from(large.bits() / 8).unwrap_or(usize::MAX),
        _ => 1,
    }
}

type Fun = jaq_core::native::Fun<Metered>;

fn guard(name: &'static str, native: Native<Metered>) -> Fun {
    (name, Box::new([]), native)
}

/// The natives that rewritten filters call, and those that take the place of jaq's.
pub(crate) fn natives() -> Vec<Fun> {
    let tick = Native::<Metered>::new(|cv| {
        let told = cv.0.data().tick(&cv.1).map_err(Broken::halt);
        box_once(told.map(|()| cv.1))
    })
    .with_paths(|cv| {
        let told = cv.0.data().tick(&cv.1.0).map_err(Broken::halt);
        box_once(told.map(|()| cv.1))
    })
    .with_update(|cv, update| match cv.0.data().tick(&cv.1) {
        Ok(()) => update(cv.1),
        Err(broken) => box_once(Err(broken.halt())),
    });
    let nest = Native::<Metered>::new(|cv| {
        let told = cv.0.data().nest(&cv.1).map_err(Broken::halt);
        box_once(told.map(|()| cv.1))
    });
    let make = Native::<Metered>::new(|cv| box_once(Ok(cv.1)))
        .with_paths(|cv| box_once(Ok(cv.1)))
        .with_update(|mut cv, update| match (cv.0.pop_var(), cv.1) {
            (Val::TStr(_), Val::Null) => update(Val::obj(jaq_json::Map::default())),
            (_, value) => update(value),
        });
    vec![
        ("!make", jaq_core::native::v(1), make),
        guard("!tick", tick),
        guard("!nest", nest),
        (
            "!mul",
            jaq_core::native::v(2),
            Native::new(|cv| box_once(multiply(cv))),
        ),
        (
            "range",
            jaq_core::native::v(3),
            Native::new(|cv| Box::new(range(cv))),
        ),
    ]
}

/// The product, unless it is text that would be too long.
fn multiply<'a>(mut cv: Cv<'a, Metered>) -> ValX<'a, Val> {
    let (right, left) = (cv.0.pop_var(), cv.0.pop_var());
    let repeated = match (&left, &right) {
        (Val::TStr(text) | Val::BStr(text), Val::Num(times))
        | (Val::Num(times), Val::TStr(text) | Val::BStr(text)) => Some((text.len(), times)),
        _ => None,
    };
    if let Some((bytes, times)) = repeated {
        let times = times
            .as_isize()
            .and_then(|times| usize::try_from(times).ok());
        let least = usize::from(matches!(&repeated, Some((_, Num::BigInt(_)))));
        let times = times.unwrap_or(if least == 1 { usize::MAX } else { 0 });
        if bytes.saturating_mul(times) > MAX_TEXT_BYTES || (bytes == 0 && times > MAX_TEXT_BYTES) {
            return Err(Broken::Size.halt());
        }
    }
    let product = (floating(left) * floating(right)).map_err(Exn::from)?;
    cv.0.data().tick(&product).map_err(Broken::halt)?;
    Ok(product)
}

/// Large integers go on as floating point, which jq has for all numbers.
fn floating(value: Val) -> Val {
    match &value {
        Val::Num(Num::BigInt(large)) if large.bits() > MAX_INTEGER_BITS => {
            Val::Num(Num::from_dec_str(&large.to_string()))
        }
        _ => value,
    }
}

/// jaq's `range`, counted.
fn range<'a>(mut cv: Cv<'a, Metered>) -> impl Iterator<Item = ValX<'a, Val>> {
    let (by, to, from) = (cv.0.pop_var(), cv.0.pop_var(), cv.0.pop_var());
    let zero = Val::from(0_usize);
    let mut next = Some(from);
    std::iter::from_fn(move || {
        let value = next.take()?;
        let goes_on = if by > zero {
            value < to
        } else if by < zero {
            value > to
        } else {
            value != to
        };
        if !goes_on {
            return None;
        }
        if let Err(broken) = cv.0.data().tick(&value) {
            return Some(Err(broken.halt()));
        }
        match value.clone() + by.clone() {
            Ok(sum) => next = Some(sum),
            Err(error) => return Some(Err(Exn::from(error))),
        }
        Some(Ok(value))
    })
}

fn tick<'s>() -> Term<&'s str> {
    Term::Call("!tick", Vec::new())
}

fn pipe<'s>(left: Term<&'s str>, right: Term<&'s str>) -> Term<&'s str> {
    Term::BinOp(Box::new(left), BinaryOp::Pipe(None), Box::new(right))
}

fn ticked(term: Term<&str>) -> Term<&str> {
    pipe(tick(), term)
}

fn nested(term: Term<&str>) -> Term<&str> {
    pipe(term, Term::Call("!nest", Vec::new()))
}

/// A definition, metered.
pub(crate) fn metered_def(mut def: Def<&str>) -> Def<&str> {
    if def.name == "getpath" {
        // `setpath` is an assignment to this.
        def.body = making(def.body);
    }
    Def {
        name: def.name,
        args: def.args,
        body: ticked(metered(def.body)),
    }
}

#[expect(clippy::boxed_local, reason = "the parts of a term are boxed")]
fn boxed(term: Box<Term<&str>>) -> Box<Term<&str>> {
    Box::new(metered(*term))
}

/// A filter, metered.
pub(crate) fn metered(term: Term<&str>) -> Term<&str> {
    match term {
        Term::Id | Term::Num(_) | Term::Var(_) | Term::Break(_) | Term::Arr(None) => term,
        Term::Recurse => pipe(term, tick()),
        Term::Str(format, parts) => metered_text(format, parts),
        Term::Arr(Some(items)) => nested(ticked(Term::Arr(Some(boxed(items))))),
        Term::Obj(fields) if fields.is_empty() => Term::Obj(fields),
        Term::Obj(fields) => nested(ticked(Term::Obj(
            fields.into_iter().map(metered_field).collect(),
        ))),
        Term::Neg(of) => Term::Neg(boxed(of)),
        Term::BinOp(left, op, right) => metered_op(left, op, right),
        Term::Label(name, body) => Term::Label(name, boxed(body)),
        Term::Fold(name, over, pattern, parts) => {
            let parts = parts.into_iter().map(metered).collect();
            Term::Fold(name, boxed(over), pattern, parts)
        }
        Term::TryCatch(body, handler) => Term::TryCatch(boxed(body), handler.map(boxed)),
        Term::IfThenElse(cases, otherwise) => {
            let cases = cases.into_iter();
            let cases = cases.map(|(when, then)| (metered(when), metered(then)));
            Term::IfThenElse(cases.collect(), otherwise.map(boxed))
        }
        Term::Def(defs, body) => {
            Term::Def(defs.into_iter().map(metered_def).collect(), boxed(body))
        }
        Term::Call(name, args) => {
            let call = Term::Call(name, args.into_iter().map(metered).collect());
            match name {
                "group_by" | "path_value" | "key_values" | "matches" | "split_matches" => {
                    nested(ticked(call))
                }
                _ => ticked(call),
            }
        }
        Term::Path(of, path) => metered_path(of, path),
    }
}

fn metered_text<'s>(
    format: Option<&'s str>,
    parts: Vec<StrPart<&'s str, Term<&'s str>>>,
) -> Term<&'s str> {
    let parts = parts.into_iter().map(|part| match part {
        // Text as `tostring` makes it, which writes numbers as jq does.
        StrPart::Term(term) if format.is_none() => {
            StrPart::Term(pipe(metered(term), Term::Call("!text", Vec::new())))
        }
        StrPart::Term(term) => StrPart::Term(metered(term)),
        StrPart::Str(text) => StrPart::Str(text),
        StrPart::Char(character) => StrPart::Char(character),
    });
    Term::Str(format, parts.collect())
}

fn metered_field<'s>(
    (key, value): (Term<&'s str>, Option<Term<&'s str>>),
) -> (Term<&'s str>, Option<Term<&'s str>>) {
    match value {
        Some(value) => (metered(key), Some(metered(value))),
        // `{a}` and `{$x}` are short for more, which depends on how they are written.
        None => (key, None),
    }
}

fn metered_path<'s>(of: Box<Term<&'s str>>, path: Path<Term<&'s str>>) -> Term<&'s str> {
    let mut several = false;
    let parts = path.0.into_iter().map(|(part, opt)| {
        let part = match part {
            Part::Index(index) => {
                several |= !matches!(index, Term::Str(..) | Term::Num(_) | Term::Var(_));
                Part::Index(metered(index))
            }
            Part::Range(from, to) => {
                several = true;
                Part::Range(from.map(metered), to.map(metered))
            }
        };
        (part, opt)
    });
    let path = Term::Path(boxed(of), Path(parts.collect()));
    if several { pipe(path, tick()) } else { path }
}

fn metered_op<'s>(
    left: Box<Term<&'s str>>,
    op: BinaryOp<&'s str>,
    right: Box<Term<&'s str>>,
) -> Term<&'s str> {
    let counted = |term: Box<Term<&'s str>>| Box::new(pipe(metered(*term), tick()));
    let (left, right) = match op {
        BinaryOp::Pipe(Some(_)) => (boxed(left), Box::new(ticked(metered(*right)))),
        BinaryOp::Comma => (
            Box::new(ticked(metered(*left))),
            Box::new(ticked(metered(*right))),
        ),
        BinaryOp::Math(_) | BinaryOp::Cmp(_) if !is_small(&left) && !is_small(&right) => {
            (counted(left), counted(right))
        }
        _ => (boxed(left), boxed(right)),
    };
    match op {
        BinaryOp::Math(Math::Mul) => Term::Call("!mul", vec![*left, *right]),
        BinaryOp::Math(_) => pipe(Term::BinOp(left, op, right), tick()),
        BinaryOp::UpdateMath(Math::Mul) => {
            let factor: &'static str = "$!factor";
            let product = Term::Call("!mul", vec![Term::Id, Term::Var(factor)]);
            let left = Box::new(making(*left));
            let update = Term::BinOp(left, BinaryOp::Update, Box::new(product));
            let bind = BinaryOp::Pipe(Some(Pattern::Var(factor)));
            nested(Term::BinOp(right, bind, Box::new(update)))
        }
        BinaryOp::Assign | BinaryOp::Update | BinaryOp::UpdateMath(_) | BinaryOp::UpdateAlt => {
            nested(Term::BinOp(Box::new(making(*left)), op, right))
        }
        _ => Term::BinOp(left, op, right),
    }
}

/// A path that makes the objects that are not there, as jq's do and jaq's do not: `.a.b = 1` on `{}`.
fn making<'s>(term: Term<&'s str>) -> Term<&'s str> {
    let both = |term: Box<Term<&'s str>>| Box::new(making(*term));
    match term {
        Term::Path(of, path) => path.0.into_iter().fold(making(*of), |of, (part, opt)| {
            let of = match &part {
                Part::Index(index @ (Term::Str(None, _) | Term::Var(_))) => {
                    pipe(of, Term::Call("!make", vec![index.clone()]))
                }
                _ => of,
            };
            let step = Term::Path(Box::new(Term::Id), Path(vec![(part, opt)]));
            pipe(of, step)
        }),
        Term::BinOp(left, op @ BinaryOp::Pipe(None), right) => {
            Term::BinOp(both(left), op, both(right))
        }
        Term::BinOp(left, op @ BinaryOp::Pipe(Some(_)), right) => {
            Term::BinOp(left, op, both(right))
        }
        Term::BinOp(left, op @ BinaryOp::Comma, right) => Term::BinOp(both(left), op, both(right)),
        Term::Fold(name, over, pattern, parts) => {
            Term::Fold(name, over, pattern, parts.into_iter().map(making).collect())
        }
        other => other,
    }
}

/// Whether a term is a number or a text that is written out: working with it costs little.
fn is_small(term: &Term<&str>) -> bool {
    match term {
        Term::Num(_) => true,
        Term::Str(None, parts) => !parts.iter().any(|part| matches!(part, StrPart::Term(_))),
        _ => false,
    }
}
