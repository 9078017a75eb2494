//! How deep a filter may be, and which definitions may call themselves.
//!
//! What runs a filter recurses with its parts, between the places where it is metered.
//!
//! A filter that is handed on to the next call of the same definition keeps all those before it
//! alive, one within the other: nothing bounds that chain, and letting go of it recurses. Values
//! (`$x`) do not.

use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Def, Pattern, Term};
use jaq_core::path::Part;

/// How many levels of recursion a filter takes by itself, its calls aside.
pub(crate) fn depth(term: &Term<&str>) -> usize {
    let mut deepest = 0;
    let mut below = |part: &Term<&str>| deepest = deepest.max(depth(part));
    match term {
        Term::Call(_, args) => args.iter().for_each(below),
        Term::Def(defs, body) => {
            defs.iter().for_each(|def| below(&def.body));
            below(body);
        }
        _ => each_part(term, &mut below),
    }
    // Fields, texts and cases become a chain of pairs, steps of a path one of steps.
    let long = match term {
        Term::Str(_, parts) => parts.len(),
        Term::Obj(fields) => fields.len(),
        Term::IfThenElse(cases, _) => cases.len(),
        Term::Path(_, path) => path.0.len(),
        Term::Def(defs, _) => defs.len(),
        _ => 1,
    };
    deepest + long
}

/// Finds a definition that hands filters to itself.
pub(crate) fn hands_on<'s>(
    term: &Term<&'s str>,
    open: &mut Vec<(&'s str, Vec<&'s str>)>,
) -> Option<&'s str> {
    match term {
        Term::Call(name, args) => {
            let called = open.iter().rev();
            let mut called = called.filter(|(of, takes)| of == name && takes.len() == args.len());
            let takes_filters =
                |takes: &Vec<&str>| takes.iter().any(|argument| !argument.starts_with('$'));
            if called
                .next()
                .is_some_and(|(_of, takes)| takes_filters(takes))
            {
                return Some(name);
            }
            args.iter().find_map(|arg| hands_on(arg, open))
        }
        Term::Def(defs, body) => defs
            .iter()
            .find_map(|def| def_hands_on(def, open))
            .or_else(|| hands_on(body, open)),
        _ => {
            let mut found = None;
            each_part(term, &mut |part| {
                if found.is_none() {
                    found = hands_on(part, open);
                }
            });
            found
        }
    }
}

fn def_hands_on<'s>(
    def: &Def<&'s str>,
    open: &mut Vec<(&'s str, Vec<&'s str>)>,
) -> Option<&'s str> {
    open.push((def.name, def.args.clone()));
    let found = hands_on(&def.body, open);
    open.pop();
    found
}

/// What a term is made of, calls and definitions aside.
fn each_part<'s>(term: &Term<&'s str>, each: &mut dyn FnMut(&Term<&'s str>)) {
    match term {
        Term::Str(_, parts) => {
            for part in parts {
                if let StrPart::Term(term) = part {
                    each(term);
                }
            }
        }
        Term::Arr(Some(of)) | Term::Neg(of) | Term::Label(_, of) => each(of),
        Term::Obj(fields) => {
            for (key, value) in fields {
                each(key);
                value.iter().for_each(&mut *each);
            }
        }
        Term::BinOp(left, op, right) => {
            each(left);
            if let BinaryOp::Pipe(Some(pattern)) = op {
                each_in_pattern(pattern, each);
            }
            each(right);
        }
        Term::Fold(_, over, pattern, parts) => {
            each(over);
            each_in_pattern(pattern, each);
            parts.iter().for_each(each);
        }
        Term::TryCatch(body, handler) => {
            each(body);
            handler.iter().for_each(|handler| each(handler));
        }
        Term::IfThenElse(cases, otherwise) => {
            for (when, then) in cases {
                each(when);
                each(then);
            }
            otherwise.iter().for_each(|otherwise| each(otherwise));
        }
        Term::Path(of, path) => {
            each(of);
            for (part, _opt) in &path.0 {
                match part {
                    Part::Index(index) => each(index),
                    Part::Range(from, to) => from.iter().chain(to).for_each(&mut *each),
                }
            }
        }
        _ => {}
    }
}

fn each_in_pattern<'s>(pattern: &Pattern<&'s str>, each: &mut dyn FnMut(&Term<&'s str>)) {
    match pattern {
        Pattern::Var(_) => {}
        Pattern::Arr(parts) => parts.iter().for_each(|part| each_in_pattern(part, each)),
        Pattern::Obj(fields) => {
            for (key, part) in fields {
                each(key);
                each_in_pattern(part, each);
            }
        }
    }
}
