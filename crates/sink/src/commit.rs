//! From a closed cut to a committed one: the plan made durable, its objects, its manifest, and on.
//!
//! Each step can be repeated: objects and manifests are created if absent under names that derive from
//! the cut, and what an earlier attempt created is recognised by the cut id and the content it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flumen_broker::StoreGuarantee;
use flumen_record::Timestamp;
use flumen_world::World;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use crate::active::{Active, on_blocking_thread};
use crate::bundle::ObjectKind;
use crate::cut::{Cut, CutStage};
use crate::filling::{FillError, Filled, FilledObject};
use crate::gather::{Gathered, GatheredCut, Ranges};
use crate::kept;
use crate::manifest::{Manifest, ManifestObject, time};
use crate::progress::Progress;
use crate::reading::{Found, read_range};
use crate::sealing::{Agreement, check_last, seal, there};
use crate::store::{self, StoreError, Stored, Tag};
use crate::trouble::Trouble;

/// Commits what the gatherer hands over, until it ends.
pub(crate) async fn commit_all(
    active: &Active<'_>,
    progress: &mut Progress,
    agreement: &Agreement<'_>,
    mut gathered: mpsc::Receiver<Gathered>,
) -> Result<(), Trouble> {
    while let Some(Gathered { cut, flush }) = gathered.recv().await {
        if let Some(gathered) = cut {
            let (cut, gathered) = plan(active, progress, gathered).await?;
            agreement.check().await?;
            write(active, progress, &cut, gathered).await?;
        }
        if let Some(flush) = flush {
            active.reporter.flushed(flush);
        }
    }
    Ok(())
}

/// Commits cuts that were planned before: by this process or one before it.
pub(crate) async fn finish_planned(
    active: &Active<'_>,
    progress: &mut Progress,
) -> Result<(), Trouble> {
    while let Some(cut) = progress.cuts().first().cloned() {
        if cut.stage == CutStage::Sealing
            && let Some(there) = there(active, &cut, cut.records).await?
        {
            // Whatever it takes to make it again, it is done.
            let schema = progress.schema().clone();
            progress.commit(schema, there.expired, there.last);
            save(active, progress).await?;
            continue;
        }
        match finish(active, progress, cut.clone()).await {
            // An earlier version encoded the same records differently, say. No manifest names it.
            Err(Trouble::Store(StoreError::Conflict { key, found }))
                if found.cut == Some(active.planned_name(&cut).id(cut.version))
                    && cut.remade != Some(active.shared.epoch)
                    && !cut.spooled =>
            {
                tracing::info!(
                    delivery = %active.desk.name(), cut = cut.number, key,
                    "an object of the planned cut has other content than it has now: the cut is made \
                     anew under other names"
                );
                progress.remake(active.shared.epoch);
                save(active, progress).await?;
            }
            finished => finished?,
        }
    }
    Ok(())
}

/// Commits one cut that was planned before.
async fn finish(active: &Active<'_>, progress: &mut Progress, mut cut: Cut) -> Result<(), Trouble> {
    let gathered = if cut.spooled {
        let (spool, planned) = (active.spool.clone(), cut.clone());
        let loaded = on_blocking_thread(&*active.shared.world, move || {
            Ok(kept::load(&spool, &planned)?)
        })
        .await;
        loaded.map_err(|trouble| lost(&cut, trouble))?
    } else {
        let gathered = refill(active, progress, &cut).await?;
        if active.bundle.is_deterministic() && !gathered.filled.has_pieces() {
            gathered
        } else {
            // Planned without a spool, or it was lost and somebody said to go on. From here on it
            // must not change any more.
            let gathered = keep(&*active.shared.world, gathered).await?;
            progress.spooled();
            cut.spooled = true;
            save(active, progress).await?;
            gathered
        }
    };
    write(active, progress, &cut, gathered).await
}

/// What is gone from the spool of a cut that cannot be made anew as it was is lost. What could not be
/// read for another reason is read again.
fn lost(cut: &Cut, trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Fill(FillError::Spool(error)) if cut.spooled && error.is_loss() => {
            Trouble::SpoolLost {
                cut: cut.number,
                detail: error.to_string(),
            }
        }
        trouble => trouble,
    }
}

/// Reads the records of a planned cut again.
async fn refill(
    active: &Active<'_>,
    progress: &mut Progress,
    cut: &Cut,
) -> Result<GatheredCut, Trouble> {
    let schema = progress.schema_before().clone();
    let name = active.planned_name(cut);
    let (filling, spool) = active.begin(name, schema);
    let mut filling = filling.without_limit();
    let mut gone = Ranges::default();
    for range in &cut.ranges {
        let mut at = range.from;
        let (broker, stream) = (&active.shared.broker, active.desk.stream());
        let read_bytes = active.shared.config.read_bytes;
        while let Some(found) = read_range(broker, stream, *range, at, read_bytes).await? {
            match found {
                Found::Piece(piece) => {
                    let to = piece.to;
                    (filling, _, _) = active.take(name, filling, piece).await?;
                    at = to;
                }
                Found::Expired(part) => {
                    active.expired(&part);
                    gone.expire(part);
                    at = part.to;
                }
                Found::Damaged(part) => {
                    active.damaged(&part);
                    gone.damaged.push(part);
                    at = part.to;
                }
            }
        }
    }
    let filled = on_blocking_thread(&*active.shared.world, move || filling.finish()).await?;
    Ok(GatheredCut {
        number: cut.number,
        ranges: cut.ranges.clone(),
        filled,
        spool,
        expired: gone.expired,
        damaged: gone.damaged,
    })
}

/// Syncs what cannot be made again the same way.
async fn keep(world: &dyn World, gathered: GatheredCut) -> Result<GatheredCut, Trouble> {
    on_blocking_thread(world, move || {
        kept::keep(&gathered)?;
        Ok(gathered)
    })
    .await
}

/// Makes a cut durable, before anything of it is uploaded.
async fn plan(
    active: &Active<'_>,
    progress: &mut Progress,
    mut gathered: GatheredCut,
) -> Result<(Cut, GatheredCut), Trouble> {
    // Read again, its records come shard by shard, and not as they came now.
    let has_order = gathered.filled.is_bound_to_order && gathered.ranges.len() > 1;
    let spooled = !active.bundle.is_deterministic() || has_order || gathered.filled.has_pieces();
    if spooled {
        gathered = keep(&*active.shared.world, gathered).await?;
    }
    let tally = gathered.filled.tally;
    let oldest = tally.oldest.unwrap_or(Timestamp::ZERO);
    let cut = Cut {
        number: gathered.number,
        version: active.bundle.version,
        ranges: gathered.ranges.clone(),
        oldest_us: oldest.as_micros(),
        records: tally.records,
        stage: CutStage::Planned,
        spooled,
        epoch: Some(active.shared.epoch),
        again: 0,
        remade: None,
    };
    let schema = gathered.filled.schema.clone();
    progress.plan(cut.clone(), &active.bundle.settings, schema);
    save(active, progress).await?;
    Ok((cut, gathered))
}

/// Saves where it stands, and says so.
pub(crate) async fn save(active: &Active<'_>, progress: &Progress) -> Result<(), Trouble> {
    let (bytes, held, desk) = (progress.encode(), progress.held(), active.desk.clone());
    // Not given up with the work: whoever begins anew waits until it is done, so that what is read
    // then is not overtaken by an older save.
    let last = Arc::clone(active.saving).lock_owned().await;
    let saving = active.shared.broker.carry_through(async move {
        let saved = desk.save(bytes.into(), held).await;
        drop(last);
        saved
    });
    match saving.await {
        Ok(saved) => saved?,
        Err(_) => return Err(flumen_broker::Error::Draining.into()),
    }
    active.reporter.stands(progress);
    Ok(())
}

/// Writes the objects of a planned cut, then its manifest, then moves on.
async fn write(
    active: &Active<'_>,
    progress: &mut Progress,
    cut: &Cut,
    gathered: GatheredCut,
) -> Result<(), Trouble> {
    let id = active.planned_name(cut).id(cut.version);
    let at_once = active.shared.config.uploads_max.max(1) as usize;
    let objects = gathered.filled.objects.iter();
    let uploads: Vec<_> = objects
        .map(|object| upload(active, cut, &id, object))
        .collect();
    let written: Vec<_> = stream::iter(uploads)
        .buffered(at_once)
        .try_collect()
        .await?;
    if cut.stage == CutStage::Planned {
        progress.seal();
        save(active, progress).await?;
    }
    if active.reporter.guarantee() != StoreGuarantee::CreateIfAbsent {
        // There, of two copies that race for a manifest both may win: the one whose manifest is
        // replaced finds that here, before its next one, and hardly any is.
        check_last(active, progress.last()).await?;
        there(active, cut, gathered.filled.tally.records).await?;
    }
    let manifest = manifest(active, cut, &gathered, written);
    let sealed = seal(active, cut, id, &manifest).await?;
    let schema = gathered.filled.schema.clone();
    progress.commit(schema, sealed.expired, sealed.last);
    save(active, progress).await?;
    gathered.spool.let_go();
    Ok(())
}

/// Writes one object, and says what the store has.
async fn upload(
    active: &Active<'_>,
    cut: &Cut,
    id: &str,
    object: &FilledObject,
) -> Result<ManifestObject, Trouble> {
    let encoding = active.bundle.encoding(object.kind);
    let tag = Tag {
        cut: id.to_owned(),
        crc32: object.object.crc32(),
        bytes: object.object.bytes(),
        content_type: encoding.content_type().to_owned(),
        content_encoding: encoding.content_encoding().map(str::to_owned),
    };
    let create = || async {
        // Only while it is on its way is it in memory.
        let _room = active.shared.upload_room(tag.bytes).await;
        let spooled = object.object.clone();
        let body = on_blocking_thread(&*active.shared.world, move || Ok(spooled.read()?)).await;
        let body = body.map_err(|trouble| lost(cut, trouble))?;
        Ok(active.store.create(&object.key, body, &tag).await?)
    };
    let stored = match active.insist(create).await {
        Err(Trouble::Store(StoreError::Conflict { found, .. })) if is_of_plan(cut, id, &found) => {
            Stored {
                bytes: found.bytes,
                crc32: found.crc32,
                e_tag: found.e_tag,
                was_there: true,
            }
        }
        stored => stored?,
    };
    count(active, object, &stored);
    Ok(describe(active, object, &stored))
}

/// Whether an object with other bytes holds the same records: those of the cut as it is planned, read
/// again in another order of its shards. The epoch in its id is drawn by chance, so no other history has
/// planned anything under it; without one, or with a spool, the bytes decide.
fn is_of_plan(cut: &Cut, id: &str, found: &store::Found) -> bool {
    let is_known = cut.epoch.is_some() && found.crc32.is_some();
    is_known && !cut.spooled && found.cut.as_deref() == Some(id)
}

fn count(active: &Active<'_>, object: &FilledObject, stored: &Stored) {
    let counters = active.desk.counters();
    let (objects, bytes, records) = match object.kind {
        ObjectKind::Backup => (
            &counters.backup_objects,
            &counters.backup_bytes,
            &counters.backup_records,
        ),
        ObjectKind::Data | ObjectKind::Error(_) => (
            &counters.delivered_objects,
            &counters.delivered_bytes,
            &counters.delivered_records,
        ),
    };
    objects.fetch_add(1, Ordering::Relaxed);
    bytes.fetch_add(stored.bytes, Ordering::Relaxed);
    records.fetch_add(object.records, Ordering::Relaxed);
    if object.kind != ObjectKind::Backup {
        active
            .reporter
            .wrote(&object.key, stored.bytes, object.records);
    }
}

fn describe(active: &Active<'_>, object: &FilledObject, stored: &Stored) -> ManifestObject {
    let encoding = active.bundle.encoding(object.kind);
    let keys = object.part.by_query.iter().chain(&object.part.by_transform);
    ManifestObject {
        kind: object.kind.as_str().to_owned(),
        key: object.key.clone(),
        records: object.records,
        bytes: stored.bytes,
        e_tag: stored.e_tag.clone(),
        crc32: stored.crc32.map(|crc32| format!("{crc32:08x}")),
        encoding: encoding.format_name().to_owned(),
        compression: encoding.compression_name().to_owned(),
        oldest_arrival: time(object.oldest),
        partition: keys.cloned().collect::<BTreeMap<_, _>>(),
    }
}

fn manifest(
    active: &Active<'_>,
    cut: &Cut,
    gathered: &GatheredCut,
    objects: Vec<ManifestObject>,
) -> Manifest {
    let Filled { tally, .. } = &gathered.filled;
    Manifest {
        format: Manifest::format(),
        delivery: active.bundle.name.as_str().to_owned(),
        incarnation: active.incarnation.to_string(),
        cut: cut.number,
        epoch: cut.epoch.map(String::from),
        settings_version: cut.version,
        stream: active.bundle.stream.as_str().to_owned(),
        ranges: cut.ranges.clone(),
        oldest_arrival: tally.oldest.map(time),
        newest_arrival: tally.newest.map(time),
        records: tally.records,
        bytes: tally.bytes,
        rows: tally.rows,
        dropped: tally.dropped,
        failed: tally.failed,
        expired: gathered.expired,
        damaged: gathered.damaged.clone(),
        objects,
    }
}
