//! What came out against what went in: every reading once, each device in order, bytes equal.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use flumen_client::ConsumedRecord;
use serde::Serialize;
use serde_json::{Map, Value};

use super::telemetry::{Reading, Telemetry};

/// The header that carries a reading's row in its device's file.
pub(super) const ROW: &str = "row";

/// Takes records in the order they come and remembers what is wrong with them.
#[derive(Debug)]
pub(super) struct Ledger {
    telemetry: Arc<Telemetry>,
    devices: HashMap<Bytes, usize>,
    /// How often each reading came, by its number.
    times: Vec<u8>,
    /// Who had it first, by its number.
    first: Vec<u8>,
    /// Whose readings may come again: it was killed before it could say that they are processed.
    excused: Option<u8>,
    /// The last row that came, by device.
    last: Vec<Option<usize>>,
    taken: u64,
    findings: Findings,
}

/// What a ledger found. All must be 0 but the first two and what a killed member left unsaved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Findings {
    /// Readings that are there.
    pub(super) present: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Readings that never came.
    pub(super) missing: u64,
    /// Readings that came again.
    pub(super) repeated: u64,
    /// Readings that came again because the member that had processed them was killed before its next
    /// checkpoint. No fault.
    pub(super) repeated_after_kill: u64,
    /// Readings that came after a later one of their device.
    pub(super) out_of_order: u64,
    /// Devices with such readings.
    pub(super) devices_out_of_order: u64,
    /// Readings whose bytes are not those that went in.
    pub(super) different: u64,
    /// Records that are no reading of ours.
    pub(super) strange: u64,
}

impl Findings {
    /// Whether everything held.
    pub(super) fn clean(&self) -> bool {
        let Self {
            missing,
            repeated,
            out_of_order,
            different,
            strange,
            ..
        } = *self;
        [missing, repeated, out_of_order, different, strange] == [0; 5]
    }
}

impl Ledger {
    /// Nothing has come yet.
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        let names = telemetry.devices.iter().enumerate();
        let devices = names.map(|(index, device)| (Bytes::from(device.name.clone()), index));
        Self {
            devices: devices.collect(),
            times: vec![0; usize::try_from(telemetry.readings).unwrap_or(usize::MAX)],
            first: vec![0; usize::try_from(telemetry.readings).unwrap_or(usize::MAX)],
            excused: None,
            last: vec![None; telemetry.devices.len()],
            taken: 0,
            findings: Findings::default(),
            telemetry,
        }
    }

    /// What this member has processed may come again from now on.
    pub(super) fn excuse(&mut self, member: usize) {
        self.excused = u8::try_from(member).ok();
    }

    /// Takes the next record of its shard, that `member` has processed; the reading's number when it
    /// is one of ours.
    pub(super) fn take_by(&mut self, record: &ConsumedRecord, member: usize) -> Option<usize> {
        self.taken += 1;
        let member = u8::try_from(member).unwrap_or(u8::MAX);
        let number = self.enter(&record.partition_key, row(record), member, |expected| {
            (record.data.len() as u64, *expected == record.data)
        });
        if number.is_none() {
            self.findings.strange += 1;
        }
        number
    }

    /// Takes a row of an object that holds readings of `device`. Equal is what has equal values.
    pub(super) fn take_row(&mut self, row: &Map<String, Value>, device: &str) {
        self.taken += 1;
        let number = row.get("row").and_then(Value::as_u64);
        let number = number.and_then(|number| usize::try_from(number).ok());
        let entered = self.enter(device.as_bytes(), number, 0, |expected| {
            let equal = Reading::of(expected).is_some_and(|reading| reading.is(row));
            (expected.len() as u64, equal)
        });
        if entered.is_none() {
            self.findings.strange += 1;
        }
    }

    /// `compare` is given what went in: how many bytes came, and whether it is the same.
    fn enter(
        &mut self,
        device: &[u8],
        row: Option<usize>,
        member: u8,
        compare: impl FnOnce(&Bytes) -> (u64, bool),
    ) -> Option<usize> {
        let index = *self.devices.get(device)?;
        let device = self.telemetry.devices.get(index)?;
        let row = row?;
        let expected = device.rows.get(row)?;
        let number = device.first + row;
        let times = self.times.get_mut(number)?;
        *times = times.saturating_add(1);
        let first = self.first.get_mut(number)?;
        if *times > 1 {
            // Once, by whoever took over.
            if *times == 2 && self.excused == Some(*first) {
                self.findings.repeated_after_kill += 1;
            } else {
                self.findings.repeated += 1;
            }
            return Some(number);
        }
        *first = member;
        self.findings.present += 1;
        let (bytes, equal) = compare(expected);
        self.findings.bytes += bytes;
        self.findings.different += u64::from(!equal);
        let last = self.last.get_mut(index)?;
        if last.is_some_and(|last| row < last) {
            self.findings.out_of_order += 1;
        }
        *last = Some(row);
        Some(number)
    }

    /// Records taken so far, whatever they were.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Readings that are there so far.
    pub(super) fn present(&self) -> u64 {
        self.findings.present
    }

    /// What is wrong, now that nothing more comes.
    pub(super) fn findings(&self) -> Findings {
        Findings {
            missing: self.telemetry.readings - self.findings.present,
            ..self.findings
        }
    }
}

fn row(record: &ConsumedRecord) -> Option<usize> {
    let header = record
        .headers
        .iter()
        .find(|header| header.name == ROW.as_bytes())?;
    std::str::from_utf8(&header.value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use flumen_record::{Header, SequenceNumber, ShardIndex, Timestamp};

    use super::super::telemetry::of_text;
    use super::*;

    fn ledger() -> Ledger {
        let rows = "timestamp,value\nt,1\nt,2\nt,3\n";
        Ledger::new(Arc::new(of_text(&[("a", rows), ("b", rows)])))
    }

    /// Device, row, value.
    type Entry = (&'static str, usize, u32);

    const ALL: [Entry; 6] = [
        ("a", 0, 1),
        ("b", 0, 1),
        ("b", 1, 2),
        ("a", 1, 2),
        ("a", 2, 3),
        ("b", 2, 3),
    ];

    fn json((device, row, value): Entry) -> String {
        format!(r#"{{"device":"{device}","row":{row},"timestamp":"t","value":{value}}}"#)
    }

    fn record(entry: Entry) -> ConsumedRecord {
        ConsumedRecord {
            shard: ShardIndex::new(0),
            sequence_number: SequenceNumber::ZERO,
            subsequence: 0,
            arrival: Timestamp::ZERO,
            partition_key: Bytes::from(entry.0),
            data: Bytes::from(json(entry)),
            headers: vec![Header {
                name: Bytes::from(ROW),
                value: Bytes::from(entry.1.to_string()),
            }],
            client_timestamp: None,
        }
    }

    /// As records, and as rows of objects.
    fn enter(ledger: &mut Ledger, entries: &[Entry]) -> Findings {
        let mut delivered = self::ledger();
        for entry in entries {
            ledger.take_by(&record(*entry), 1);
            delivered.take_row(&serde_json::from_str(&json(*entry)).unwrap(), entry.0);
        }
        let findings = ledger.findings();
        assert_eq!(delivered.findings(), findings);
        findings
    }

    #[test]
    fn everything_once_and_in_order_is_clean() {
        let findings = enter(&mut ledger(), &ALL);
        assert!(findings.clean(), "{findings:?}");
        assert_eq!((findings.present, findings.bytes), (6, 6 * 48));
    }

    #[test]
    fn what_a_killed_member_had_processed_may_come_again_once() {
        let mut ledger = ledger();
        let again = |ledger: &mut Ledger, member| {
            ledger.take_by(&record(("a", 0, 1)), member);
            (
                ledger.findings.repeated,
                ledger.findings.repeated_after_kill,
            )
        };
        assert_eq!(again(&mut ledger, 2), (0, 0));
        ledger.excuse(2);
        assert_eq!(again(&mut ledger, 1), (0, 1));
        assert_eq!(again(&mut ledger, 1), (1, 1));
        // Of another member it is a fault.
        ledger.excuse(1);
        ledger.take_by(&record(("b", 0, 1)), 2);
        ledger.take_by(&record(("b", 0, 1)), 1);
        assert_eq!(ledger.findings.repeated, 2);
    }

    #[test]
    fn each_fault_is_found() {
        let missing = enter(&mut ledger(), &ALL[1..]);
        assert_eq!((missing.missing, missing.clean()), (1, false));

        let mut again = ALL.to_vec();
        again.push(("a", 2, 3));
        assert_eq!(enter(&mut ledger(), &again).repeated, 1);

        let mut swapped = ALL.to_vec();
        swapped.swap(3, 4);
        let swapped = enter(&mut ledger(), &swapped);
        assert_eq!((swapped.out_of_order, swapped.missing), (1, 0));

        let mut changed = ALL.to_vec();
        changed[0].2 = 9;
        assert_eq!(enter(&mut ledger(), &changed).different, 1);

        let mut strange = ALL.to_vec();
        strange.extend([("c", 0, 1), ("a", 3, 4)]);
        assert_eq!(enter(&mut ledger(), &strange).strange, 2);
    }
}
