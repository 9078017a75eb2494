//! What is done to records before they are written: unpacking, filter, map, partition keys.
//!
//! Everything here is a function of the record and the settings, with two exceptions that
//! [`Processor::is_deterministic`] knows of: the transform, which runs between [`Processor::unpack`]
//! and [`Processor::shape`], and filters that ask for the time.

mod kpl;
mod unpack;

use bytes::Bytes;
use flumen_broker::DeliverySettings;
use jaq_json::Val;

use crate::jq::{Filter, Globals, JqFailed, number_text, parse, write};
use crate::unit::{Failure, Shaped, Unit};
use flumen_broker::SettingRefused;
use unpack::{
    Inner, MAX_SUB_RECORDS, MAX_UNZIPPED_BYTES, failure, log_lines, sub_records, too_many, unzip,
};

/// Partition keys of a delivery stream at most.
const MAX_PARTITION_KEYS: usize = 50;
/// The longest value of a partition key, in bytes: beyond that no object could be named by it.
const MAX_PARTITION_VALUE_BYTES: usize = 1024;

/// Does to records what the settings say. Send and Sync.
#[derive(Debug)]
pub(crate) struct Processor {
    decompress: bool,
    cloudwatch_logs: bool,
    inner: Option<Inner>,
    filter: Option<Filter>,
    map: Option<Filter>,
    /// Partition keys in the order of their names.
    keys: Vec<(String, Filter)>,
    uses_globals: bool,
    deterministic: bool,
}

impl Processor {
    /// Reads the settings.
    pub(crate) fn compile(settings: &DeliverySettings) -> Result<Self, SettingRefused> {
        let processing = &settings.processing;
        let filter_of = |setting, text: &Option<String>| {
            let text = text.as_ref();
            text.map(|text| Filter::compile(setting, text)).transpose()
        };
        let filter = filter_of("processing.filter", &processing.filter)?;
        let map = filter_of("processing.map", &processing.map)?;
        let mut keys = Vec::new();
        for (name, text) in settings.partitioning.iter().flat_map(|of| &of.keys) {
            let key = Filter::compile("partitioning.keys", text)?;
            keys.push((name.clone(), key));
        }
        if keys.len() > MAX_PARTITION_KEYS {
            return Err(SettingRefused::new(
                "partitioning.keys",
                format!("{} keys, of at most {MAX_PARTITION_KEYS}", keys.len()),
            ));
        }
        let filters = || {
            filter
                .iter()
                .chain(&map)
                .chain(keys.iter().map(|(_name, key)| key))
        };
        let uses_globals = filters().any(Filter::uses_globals);
        let deterministic =
            processing.transform.is_none() && filters().all(Filter::is_deterministic);
        let sub_records = processing.sub_records.as_ref();
        Ok(Self {
            decompress: processing.decompress,
            cloudwatch_logs: processing.cloudwatch_logs,
            inner: sub_records.map(Inner::compile).transpose()?,
            filter,
            map,
            keys,
            uses_globals,
            deterministic,
        })
    }

    /// Names of the partition keys, in the order of the values in [`Shaped::Row`].
    pub(crate) fn partition_keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|(name, _key)| name.as_str())
    }

    /// Takes a stored record apart: KPL aggregates always, then as the settings say. Units that come
    /// out are numbered from 0; one that cannot be taken apart comes out as it went in. What is within
    /// bounds is for the stored record as a whole.
    pub(crate) fn unpack(&self, unit: Unit, each: &mut dyn FnMut(Result<Unit, (Unit, Failure)>)) {
        let mut bounds = Bounds::default();
        let Some(parts) = kpl::parts(&unit.data) else {
            return self.unpack_part(unit, &mut bounds, each);
        };
        if parts.len() > MAX_SUB_RECORDS {
            return each(Err((unit, too_many())));
        }
        for part in parts {
            let unit = Unit {
                partition_key: part.partition_key,
                data: part.data,
                ..unit.clone()
            };
            self.unpack_part(unit, &mut bounds, each);
        }
    }

    fn unpack_part(
        &self,
        unit: Unit,
        bounds: &mut Bounds,
        each: &mut dyn FnMut(Result<Unit, (Unit, Failure)>),
    ) {
        if !self.decompress && !self.cloudwatch_logs && self.inner.is_none() {
            let sub = bounds.number();
            return each(Ok(Unit { sub, ..unit }));
        }
        match self.parts(&unit.data, bounds) {
            Err(failure) => {
                let sub = bounds.number();
                each(Err((Unit { sub, ..unit }, failure)));
            }
            Ok(parts) => {
                for data in parts {
                    let sub = bounds.number();
                    each(Ok(Unit {
                        data,
                        sub,
                        ..unit.clone()
                    }));
                }
            }
        }
    }

    fn parts(&self, data: &Bytes, bounds: &mut Bounds) -> Result<Vec<Bytes>, Failure> {
        let data = if self.decompress {
            unzip(data, &mut bounds.unzipped_left)?
        } else {
            data.clone()
        };
        let lines = if self.cloudwatch_logs {
            log_lines(&data)?
        } else {
            vec![data]
        };
        let mut parts = Vec::new();
        for line in lines {
            match &self.inner {
                Some(inner) => parts.extend(sub_records(inner, &line)?),
                None => parts.push(line),
            }
            if parts.len() as u64 + bounds.next > MAX_SUB_RECORDS as u64 {
                return Err(too_many());
            }
        }
        Ok(parts)
    }

    /// Makes rows of a unit. Without jq and partitioning its data passes as it is, unread.
    pub(crate) fn shape(&self, unit: &Unit, each: &mut dyn FnMut(Shaped)) {
        if self.filter.is_none() && self.map.is_none() && self.keys.is_empty() {
            return each(Shaped::Row {
                data: unit.data.clone(),
                partition: Vec::new(),
            });
        }
        let value = match parse(&unit.data) {
            Ok(value) => value,
            Err(refused) => {
                return each(Shaped::Failed(failure("Json.Invalid", refused.to_string())));
            }
        };
        let globals = if self.uses_globals {
            Globals::of(unit)
        } else {
            Globals::default()
        };
        match self.rows(unit, value, &globals) {
            Err(failure) => each(Shaped::Failed(failure)),
            Ok(rows) if rows.is_empty() => each(Shaped::Dropped),
            Ok(rows) => rows.into_iter().for_each(each),
        }
    }

    /// The rows of a record. If one of them fails the record fails: it is to be whole in one place.
    fn rows(&self, unit: &Unit, value: Val, globals: &Globals) -> Result<Vec<Shaped>, Failure> {
        if let Some(filter) = &self.filter {
            let kept = filter.first(value.clone(), globals).map_err(of_filter)?;
            if matches!(kept, None | Some(Val::Null | Val::Bool(false))) {
                return Ok(Vec::new());
            }
        }
        let Some(map) = &self.map else {
            let partition = self.partition(value, globals)?;
            let data = unit.data.clone();
            return Ok(vec![Shaped::Row { data, partition }]);
        };
        let outputs = map.run(value, globals).map_err(of_map)?;
        let mut bytes = 0;
        let rows = outputs.into_iter().map(|output| {
            let written = write(&output);
            let data = written.map_err(|refused| failure("Jq.NotJson", refused.to_string()))?;
            bytes += data.len();
            if bytes > crate::jq::MAX_TEXT_BYTES {
                let most = crate::jq::MAX_TEXT_BYTES;
                let what = format!("map: the outputs take more than {most} bytes together");
                return Err(failure("Jq.TooLarge", what));
            }
            let partition = self.partition(output, globals)?;
            Ok(Shaped::Row { data, partition })
        });
        rows.collect()
    }

    fn partition(&self, row: Val, globals: &Globals) -> Result<Vec<String>, Failure> {
        let values = self.keys.iter().map(|(name, key)| {
            let value = key.first(row.clone(), globals).map_err(|failed| {
                failure(failed.code(), format!("partition key {name:?}: {failed}"))
            })?;
            partition_value(name, value)
        });
        values.collect()
    }

    /// Whether equal records become equal rows, always.
    pub(crate) fn is_deterministic(&self) -> bool {
        self.deterministic
    }
}

/// What is left of a stored record's bounds while it is taken apart.
struct Bounds {
    /// The number of the next unit.
    next: u64,
    unzipped_left: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            next: 0,
            unzipped_left: MAX_UNZIPPED_BYTES,
        }
    }
}

impl Bounds {
    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }
}

fn of_filter(failed: JqFailed) -> Failure {
    failure(failed.code(), format!("filter: {failed}"))
}

fn of_map(failed: JqFailed) -> Failure {
    failure(failed.code(), format!("map: {failed}"))
}

fn partition_value(name: &str, value: Option<Val>) -> Result<String, Failure> {
    let text = match value {
        Some(Val::TStr(text)) => String::from_utf8_lossy(&text).into_owned(),
        Some(Val::Num(number)) => number_text(&number),
        Some(Val::Bool(value)) => value.to_string(),
        None | Some(Val::Null) => {
            let what = format!("the record has no value for partition key {name:?}");
            return Err(failure("Partition.MissingKey", what));
        }
        Some(Val::Arr(_) | Val::Obj(_) | Val::BStr(_)) => {
            let what = format!("partition key {name:?} is no text, number or boolean");
            return Err(failure("Partition.InvalidKey", what));
        }
    };
    if text.len() > MAX_PARTITION_VALUE_BYTES {
        let bytes = text.len();
        let what = format!(
            "partition key {name:?} is {bytes} bytes long, of at most {MAX_PARTITION_VALUE_BYTES}"
        );
        return Err(failure("Partition.InvalidKey", what));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
