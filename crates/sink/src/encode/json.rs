//! Reads JSON without building it: whether bytes are one value, and where the fields of an object
//! are. It takes what serde_json takes (RFC 8259, no lone surrogates, equally deep), except that it
//! does not mind how large a number is.

use std::ops::Range;

/// How deep arrays and objects may be in each other: as deep as what else reads JSON here goes.
const DEPTH_MAX: u32 = 127;

/// Why bytes are not one JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{fault} at byte {at}")]
pub(super) struct JsonInvalid {
    /// Where.
    pub(super) at: usize,
    /// What.
    pub(super) fault: Fault,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// Not UTF-8.
    #[error("not utf-8")]
    Utf8,
    /// It ends too early.
    #[error("it ends within a value")]
    End,
    /// Something else than what must stand here.
    #[error("not json")]
    Unexpected,
    /// A control character, or the end, in a string.
    #[error("a string that does not end, or has a control character in it")]
    String,
    /// A `\` that starts nothing, or half of a surrogate pair.
    #[error("a bad escape")]
    Escape,
    /// More than one value.
    #[error("more after the value")]
    Trailing,
    /// Too deep.
    #[error("more than {DEPTH_MAX} arrays and objects in each other")]
    Depth,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `null`.
    Null,
    /// `true`, `false`.
    Boolean,
    /// A number without `.` and exponent.
    Integer,
    /// A number with `.` and without exponent.
    Decimal,
    /// A number with an exponent.
    Scientific,
    /// A string without escapes.
    Text,
    /// A string with escapes.
    EscapedText,
    /// An array or an object.
    Nested,
}

/// A value, and where it is in its row; a string with its quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// How a value lies in the bytes around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    /// The value without the space around it.
    pub(super) range: Range<usize>,
    /// Whether there are line ends within that range.
    pub(super) lines: bool,
}

/// `row` as text.
pub(super) fn text(row: &[u8]) -> Result<&str, JsonInvalid> {
    std::str::from_utf8(row).map_err(|error| JsonInvalid {
        at: error.valid_up_to(),
        fault: Fault::Utf8,
    })
}

/// Checks that `row` is one value (its UTF-8 aside) and says where.
pub(super) fn value(row: &[u8]) -> Result<Placed, JsonInvalid> {
    let mut reader = Reader::new(row);
    reader.space();
    reader.lines = false;
    let value = reader.value()?;
    let lines = reader.lines;
    reader.end()?;
    Ok(Placed {
        range: value.start..value.end,
        lines,
    })
}

/// What takes the fields of an object, in order.
pub(super) trait Visit {
    /// The next field's name as it may well be, as it stands in a row: its quotes and the colon right
    /// after them. Empty if that is not known. A name that was read before is not read again, only
    /// compared.
    fn guess(&self) -> &[u8];
    /// The next field, and its name is the one that was guessed.
    fn guessed(&mut self, value: Value);
    /// The next field, with its name as it stands between the quotes.
    fn field(&mut self, name: &[u8], value: Value);
}

/// Checks that `row` is one object (its UTF-8 aside) and hands over its fields. `false`: it is a
/// value, but not an object.
pub(super) fn fields(row: &[u8], visit: &mut impl Visit) -> Result<bool, JsonInvalid> {
    let mut reader = Reader::new(row);
    reader.space();
    if reader.peek() != b'{' {
        return value(row).map(|_| false);
    }
    reader.at += 1;
    reader.space();
    if reader.peek() == b'}' {
        reader.at += 1;
        return reader.end().map(|()| true);
    }
    loop {
        let guess = visit.guess();
        let rest = row.get(reader.at..).unwrap_or_default();
        if !guess.is_empty() && rest.starts_with(guess) {
            reader.at += guess.len();
            reader.space();
            visit.guessed(reader.value()?);
        } else {
            let name = reader.at + 1;
            reader.string()?;
            let name = row.get(name..reader.at - 1).unwrap_or_default();
            reader.space();
            reader.expect(b':')?;
            reader.space();
            visit.field(name, reader.value()?);
        }
        reader.space();
        match reader.peek() {
            b',' => reader.at += 1,
            b'}' => break,
            _ => return Err(reader.unexpected()),
        }
        reader.space();
    }
    reader.at += 1;
    reader.end().map(|()| true)
}

/// A valid value without the space between its parts: on one line.
pub(super) fn compact(value: &[u8]) -> Vec<u8> {
    let mut compact = Vec::with_capacity(value.len());
    let mut reader = Reader::new(value);
    while let Some(&byte) = value.get(reader.at) {
        let start = reader.at;
        if byte == b'"' {
            if reader.string().is_err() {
                break;
            }
            compact.extend_from_slice(value.get(start..reader.at).unwrap_or_default());
        } else {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                compact.push(byte);
            }
            reader.at += 1;
        }
    }
    compact
}

/// Arrays and objects that are open, the innermost in the lowest bit: set for an object.
#[derive(Default)]
struct Open {
    objects: u128,
    depth: u32,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Whether space with a line end was passed.
    lines: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            lines: false,
        }
    }

    /// The next byte; 0, which stands nowhere in JSON, at the end.
    #[inline]
    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    #[cold]
    fn fault(&self, fault: Fault) -> JsonInvalid {
        JsonInvalid { at: self.at, fault }
    }

    #[cold]
    fn unexpected(&self) -> JsonInvalid {
        let end = self.at >= self.bytes.len();
        self.fault(if end { Fault::End } else { Fault::Unexpected })
    }

    #[inline]
    fn space(&mut self) {
        while let byte @ (b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.lines |= matches!(byte, b'\n' | b'\r');
            self.at += 1;
        }
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), JsonInvalid> {
        if self.peek() != byte {
            return Err(self.unexpected());
        }
        self.at += 1;
        Ok(())
    }

    fn end(&mut self) -> Result<(), JsonInvalid> {
        self.space();
        if self.at < self.bytes.len() {
            return Err(self.fault(Fault::Trailing));
        }
        Ok(())
    }

    #[inline]
    fn value(&mut self) -> Result<Value, JsonInvalid> {
        let start = self.at;
        let kind = match self.peek() {
            b'{' | b'[' => self.nested().map(|()| Kind::Nested)?,
            _ => self.scalar()?,
        };
        let end = self.at;
        Ok(Value { kind, start, end })
    }

    #[inline]
    fn scalar(&mut self) -> Result<Kind, JsonInvalid> {
        match self.peek() {
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.word(b"true", Kind::Boolean),
            b'f' => self.word(b"false", Kind::Boolean),
            b'n' => self.word(b"null", Kind::Null),
            _ => Err(self.unexpected()),
        }
    }

    fn word(&mut self, word: &[u8], kind: Kind) -> Result<Kind, JsonInvalid> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word) {
            return Err(self.unexpected());
        }
        self.at += word.len();
        Ok(kind)
    }

    #[inline]
    fn number(&mut self) -> Result<Kind, JsonInvalid> {
        if self.peek() == b'-' {
            self.at += 1;
        }
        if self.peek() == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        let mut kind = Kind::Integer;
        if self.peek() == b'.' {
            self.at += 1;
            self.digits()?;
            kind = Kind::Decimal;
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
            kind = Kind::Scientific;
        }
        Ok(kind)
    }

    #[inline]
    fn digits(&mut self) -> Result<(), JsonInvalid> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
        let digits = digits.count();
        if digits == 0 {
            return Err(self.unexpected());
        }
        self.at += digits;
        Ok(())
    }

    /// Passes a string.
    #[inline]
    fn string(&mut self) -> Result<Kind, JsonInvalid> {
        self.expect(b'"')?;
        let mut kind = Kind::Text;
        loop {
            self.at += plain_bytes(self.bytes.get(self.at..).unwrap_or_default());
            match self.peek() {
                b'"' => break,
                b'\\' => {
                    kind = Kind::EscapedText;
                    self.escape()?;
                }
                _ => return Err(self.fault(Fault::String)),
            }
        }
        self.at += 1;
        Ok(kind)
    }

    fn escape(&mut self) -> Result<(), JsonInvalid> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = match rest.get(1).copied() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Some(2),
            Some(b'u') => unicode_escape(rest).map(|(_, length)| length),
            _ => None,
        };
        self.at += length.ok_or_else(|| self.fault(Fault::Escape))?;
        Ok(())
    }

    /// Passes an array or an object, at its bracket.
    fn nested(&mut self) -> Result<(), JsonInvalid> {
        let mut open = Open::default();
        self.open(&mut open)?;
        // Only right after a bracket may the other bracket follow.
        let mut first = true;
        loop {
            self.space();
            if !(first && self.close(&mut open)) {
                if open.in_object() {
                    self.string()?;
                    self.space();
                    self.expect(b':')?;
                    self.space();
                }
                if matches!(self.peek(), b'{' | b'[') {
                    self.open(&mut open)?;
                    first = true;
                    continue;
                }
                self.scalar()?;
            }
            loop {
                if open.depth == 0 {
                    return Ok(());
                }
                self.space();
                if !self.close(&mut open) {
                    break;
                }
            }
            self.expect(b',')?;
            first = false;
        }
    }

    fn open(&mut self, open: &mut Open) -> Result<(), JsonInvalid> {
        if open.depth == DEPTH_MAX {
            return Err(self.fault(Fault::Depth));
        }
        open.objects = (open.objects << 1) | u128::from(self.peek() == b'{');
        open.depth += 1;
        self.at += 1;
        Ok(())
    }

    /// Passes the bracket of the innermost, if it stands here.
    fn close(&mut self, open: &mut Open) -> bool {
        let bracket = if open.in_object() { b'}' } else { b']' };
        if self.peek() != bracket {
            return false;
        }
        open.objects >>= 1;
        open.depth -= 1;
        self.at += 1;
        true
    }
}

impl Open {
    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }
}

/// Bytes up to the first `"`, `\` or control character, eight at a time.
#[inline]
fn plain_bytes(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    // Sets the top bit of bytes that are smaller than `n`. A borrow may also set it in bytes after
    // the first such one, so that only the first is right, and only the first is looked at.
    let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word & TOPS;
    let mut passed = 0;
    let mut rest = bytes;
    while let Some((word, more)) = rest.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let slash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let found = quote | slash | below(word, 0x20);
        if found != 0 {
            return passed + found.trailing_zeros() as usize / 8;
        }
        passed += 8;
        rest = more;
    }
    let plain = |byte: &&u8| !matches!(**byte, b'"' | b'\\' | 0..=0x1f);
    passed + rest.iter().take_while(plain).count()
}

/// The character that `\uXXXX`, or a pair of those, stands for, and how many bytes that takes.
fn unicode_escape(bytes: &[u8]) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let escape = bytes.get(at..at + 6)?;
        let digits = escape.strip_prefix(br"\u")?;
        digits.iter().try_fold(0, |unit, &digit| {
            Some(unit * 16 + char::from(digit).to_digit(16)?)
        })
    };
    let first = unit(0)?;
    if let Some(character) = char::from_u32(first) {
        return Some((character, 6));
    }
    let second = unit(6).filter(|second| (0xdc00..0xe000).contains(second))?;
    let high = first.checked_sub(0xd800).filter(|high| *high < 0x400)?;
    let character = char::from_u32(0x10000 + (high << 10) + (second - 0xdc00))?;
    Some((character, 12))
}

/// Hands over the pieces of what stands between the quotes of a valid string, escapes undone.
pub(super) fn unescape(mut text: &str, mut piece: impl FnMut(&str)) {
    while let Some(at) = text.find('\\') {
        let (plain, escape) = text.split_at(at);
        piece(plain);
        let character = match escape.as_bytes().get(1).copied() {
            Some(b'u') => unicode_escape(escape.as_bytes()),
            Some(b'b') => Some(('\u{8}', 2)),
            Some(b'f') => Some(('\u{c}', 2)),
            Some(b'n') => Some(('\n', 2)),
            Some(b'r') => Some(('\r', 2)),
            Some(b't') => Some(('\t', 2)),
            other => other.map(|byte| (char::from(byte), 2)),
        };
        // A valid string has no other; this ends with what there is.
        let Some((character, length)) = character else {
            return;
        };
        piece(character.encode_utf8(&mut [0; 4]));
        text = escape.get(length..).unwrap_or_default();
    }
    piece(text);
}

#[cfg(test)]
mod tests;
