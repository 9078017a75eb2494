//! Groups as people and programs read them.

use anyhow::Result;
use flumen_client::{
    GroupDescription, GroupName, GroupSummary, Lag, MemberDescription, ShardLease, ShardProgress,
    ShardReset, StreamName,
};
use serde_json::{Value, json};

use crate::output::{Output, OutputError};
use crate::quantity::{count, duration, micros, size};

/// One row, or object, per group.
pub(super) fn list(output: &mut Output, groups: &[GroupSummary]) -> Result<()> {
    if output.is_json() {
        return Ok(groups
            .iter()
            .try_for_each(|group| output.json(&summary_json(group)))?);
    }
    if groups.is_empty() {
        output.note("no groups yet; `flumen consume STREAM --group NAME` makes one");
        return Ok(());
    }
    let header = [
        "STREAM", "GROUP", "MEMBERS", "SHARDS", "BEHIND", "BYTES", "OLDEST", "EXPIRED",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(groups.iter().map(|group| {
        let [records, bytes, age] = lag_cells(&group.lag);
        [
            group.stream.to_string(),
            group.group.to_string(),
            group.members.to_string(),
            group.shards.to_string(),
            records,
            bytes,
            age,
            expired(group),
        ]
    }));
    Ok(output.table(&rows)?)
}

/// Members and shards of one group.
pub(super) fn describe(output: &mut Output, group: &GroupDescription) -> Result<(), OutputError> {
    if output.is_json() {
        return output.json(&description_json(group));
    }
    output.line(&headline(&group.summary))?;
    let missed = &group.summary;
    if missed.expired_records > 0 {
        let records = plural(missed.expired_records, "record", "records");
        output.line(&format!("{records} expired before the group read them"))?;
    }
    if missed.expired_unknown {
        output.line("more may have expired before the group read them: how many is not known")?;
    }
    let beyond = group.shards.iter().filter(|shard| shard.is_beyond_end);
    for shard in beyond {
        let (shard, stream, name) = (shard.shard, &missed.stream, &missed.group);
        output.line(&format!(
            "shard {shard}: its checkpoint is beyond its end, nothing is read; \
             `flumen group reset {stream} {name} --shard {shard} --to WHERE` sets it"
        ))?;
    }
    if group.forced > 0 {
        output.line(&format!(
            "{} forced: records may have been processed twice",
            plural(group.forced, "hand-over was", "hand-overs were")
        ))?;
    }
    if !group.members.is_empty() {
        output.line("")?;
        let header = ["MEMBER", "CONNECTED", "HEARD AGO", "SHARDS"];
        let mut rows = vec![header.map(str::to_owned)];
        rows.extend(group.members.iter().map(member_row));
        output.table(&rows)?;
    }
    output.line("")?;
    let header = [
        "SHARD",
        "STATE",
        "MEMBER",
        "GENERATION",
        "CHECKPOINT",
        "SAVED",
        "BEHIND",
        "BYTES",
        "OLDEST",
        "EXPIRED",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(group.shards.iter().map(shard_row));
    output.table(&rows)
}

/// What a reset does, or would do, to each shard.
pub(super) fn resets(
    output: &mut Output,
    stream: &StreamName,
    group: &GroupName,
    resets: &[ShardReset],
    dry_run: bool,
) -> Result<(), OutputError> {
    if output.is_json() {
        return resets.iter().try_for_each(|reset| {
            output.json(&json!({
                "stream": stream.as_str(),
                "group": group.as_str(),
                "shard": reset.shard.value(),
                "before": reset.before.map(|before| before.value()),
                "after": reset.after.value(),
                "dry_run": dry_run,
            }))
        });
    }
    let verb = if dry_run { "would reset" } else { "reset" };
    let shards = plural(resets.len() as u64, "shard", "shards");
    output.line(&format!("{verb} {group} of {stream}: {shards}"))?;
    let mut rows = vec![["SHARD", "BEFORE", "", "AFTER"].map(str::to_owned)];
    rows.extend(resets.iter().map(|reset| {
        let before = reset
            .before
            .map_or_else(|| "-".to_owned(), |at| at.to_string());
        let (shard, after) = (reset.shard.to_string(), reset.after.to_string());
        [shard, before, "→".to_owned(), after]
    }));
    output.table(&rows)
}

/// `clicks/billing: 2 members, 4 shards, 1,234 records behind (3.3 MiB, the oldest 12 s old)`.
fn headline(group: &GroupSummary) -> String {
    let lag = &group.lag;
    let behind = if lag.records == 0 {
        "nothing behind".to_owned()
    } else {
        let [records, bytes, age] = lag_cells(lag);
        let word = if lag.records == 1 {
            "record"
        } else {
            "records"
        };
        format!("{records} {word} behind ({bytes}, the oldest {age} old)")
    };
    format!(
        "{}/{}: {}, {}, {behind}",
        group.stream,
        group.group,
        plural(group.members.into(), "member", "members"),
        plural(group.shards.into(), "shard", "shards"),
    )
}

fn plural(number: u64, one: &str, more: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { more })
}

fn lag_cells(lag: &Lag) -> [String; 3] {
    let age = if lag.records == 0 {
        "-".to_owned()
    } else {
        duration(lag.age)
    };
    [count(lag.records), size(lag.bytes), age]
}

fn member_row(member: &MemberDescription) -> [String; 4] {
    [
        member.member.clone(),
        if member.connected { "yes" } else { "no" }.to_owned(),
        duration(member.heard_ago),
        member.shards.to_string(),
    ]
}

/// The state, and who holds the shard.
fn lease(lease: &ShardLease) -> (&'static str, Option<&str>) {
    match lease {
        ShardLease::Waiting => ("waiting", None),
        ShardLease::Free => ("free", None),
        ShardLease::Held(member) => ("held", Some(member)),
        ShardLease::Revoked(member) => ("revoked", Some(member)),
        ShardLease::Finished => ("finished", None),
    }
}

fn shard_row(shard: &ShardProgress) -> [String; 10] {
    let (state, holder) = lease(&shard.lease);
    let none = || "-".to_owned();
    let checkpoint = shard.checkpoint.map(|(number, part)| match part {
        Some(part) => format!("{number}.{part}"),
        None => number.to_string(),
    });
    let [records, bytes, age] = lag_cells(&shard.lag);
    [
        shard.shard.to_string(),
        state.to_owned(),
        holder.map_or_else(none, str::to_owned),
        match shard.generation {
            0 => none(),
            generation => generation.to_string(),
        },
        checkpoint.unwrap_or_else(none),
        shard.checkpointed.map_or_else(none, |at| at.to_string()),
        records,
        bytes,
        age,
        shard
            .expired_records
            .map_or_else(|| "unknown".to_owned(), count),
    ]
}

/// Records that expired unread: `57`, or `57+` when more may have, or `unknown`.
fn expired(group: &GroupSummary) -> String {
    match (group.expired_records, group.expired_unknown) {
        (0, true) => "unknown".to_owned(),
        (records, true) => format!("{}+", count(records)),
        (records, false) => count(records),
    }
}

fn summary_json(group: &GroupSummary) -> Value {
    json!({
        "stream": group.stream.as_str(),
        "group": group.group.as_str(),
        "members": group.members,
        "shards": group.shards,
        "lag_records": group.lag.records,
        "lag_bytes": group.lag.bytes,
        "lag_age_us": micros(group.lag.age),
        "expired_records": group.expired_records,
        "expired_unknown": group.expired_unknown,
    })
}

fn description_json(group: &GroupDescription) -> Value {
    let mut shown = summary_json(&group.summary);
    if let Some(fields) = shown.as_object_mut() {
        let members = group.members.iter().map(|member| {
            json!({
                "member": member.member,
                "connected": member.connected,
                "heard_ago_us": micros(member.heard_ago),
                "shards": member.shards,
            })
        });
        fields.insert("member_list".to_owned(), members.collect());
        let shards = group.shards.iter().map(shard_json).collect();
        fields.insert("shard_map".to_owned(), shards);
        fields.insert("forced_hand_overs".to_owned(), group.forced.into());
    }
    shown
}

fn shard_json(shard: &ShardProgress) -> Value {
    let (state, holder) = lease(&shard.lease);
    json!({
        "shard": shard.shard.value(),
        "state": state,
        "member": holder,
        "generation": shard.generation,
        "sequence_number": shard.checkpoint.map(|(number, _)| number.value()),
        "subsequence": shard.checkpoint.and_then(|(_, part)| part),
        "checkpoint_time": shard.checkpointed.map(|at| at.to_string()),
        "lag_records": shard.lag.records,
        "lag_bytes": shard.lag.bytes,
        "lag_age_us": micros(shard.lag.age),
        "expired_records": shard.expired_records,
        "beyond_end": shard.is_beyond_end,
    })
}
