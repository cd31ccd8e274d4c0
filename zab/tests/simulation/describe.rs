//! Messages as a reader of a trace wants them: without sessions and sequence numbers.

use zab::{Body, Entry, Membership, Standing, Zxid};

pub(crate) fn describe(body: &Body) -> String {
    match body {
        Body::Hello { membership, pending } if membership.is_bound() => {
            let pending =
                pending.as_ref().map_or(String::new(), |next| format!(", perhaps {}", members(next)));
            format!("Hello, we are {}{pending}", members(membership))
        }
        Body::Hello { .. } => "Hello".to_owned(),
        Body::Notification { round, vote, standing, .. } => {
            let vote = vote.map_or("nobody".to_owned(), |vote| {
                format!("{} with history e{} {}", vote.candidate, vote.current_epoch, vote.last)
            });
            match standing {
                Standing::Looking => format!("Notification round {round}: for {vote}"),
                Standing::Following { leader } => {
                    format!("Notification round {round}: for {vote}, with {leader}")
                }
                Standing::Leading { epoch } => format!("Notification: I lead epoch {epoch}"),
            }
        }
        Body::FollowerInfo { accepted_epoch, may_vote, .. } => {
            format!(
                "FollowerInfo accepted {accepted_epoch}{}",
                if *may_vote { "" } else { " without a vote" }
            )
        }
        Body::NewEpoch { epoch, .. } => format!("NewEpoch {epoch}"),
        Body::AckEpoch { epoch, current_epoch, last, tails, .. } => {
            format!("AckEpoch {epoch}: history e{current_epoch} {last}, tails {}", list(tails))
        }
        Body::SyncFrom { common, .. } => format!("SyncFrom {common}"),
        Body::Snapshot { snapshot, .. } => format!("Snapshot at {}", snapshot.zxid),
        Body::Entries { prev, entries, commit, .. } => {
            format!("Entries after {prev}: {}, commit {commit}", list(&zxids(entries)))
        }
        Body::NewLeader { epoch, last, .. } => format!("NewLeader {epoch} after {last}"),
        Body::UpToDate { commit, .. } => format!("UpToDate, commit {commit}"),
        Body::Commit { commit, .. } => format!("Commit {commit}"),
        Body::Heartbeat { round, commit, .. } => format!("Heartbeat {round}, commit {commit}"),
        Body::Ack { round, progress, .. } => format!(
            "Ack {}{}, round {round}",
            progress.durable,
            if progress.synced { "" } else { " not in sync" }
        ),
        Body::Leave { resigned, .. } => format!("Leave{}", if *resigned { ", I resigned" } else { "" }),
    }
}

/// Version, voters and observers: `v3 1 2 4 + 9`.
pub(crate) fn members(membership: &Membership) -> String {
    let voters: Vec<String> = membership.voters.keys().map(|id| id.to_string()).collect();
    let observers: String = membership.observers.iter().map(|id| format!(" + {id}")).collect();
    format!("v{} {}{observers}", membership.version, voters.join(" "))
}

fn zxids(entries: &[Entry]) -> Vec<Zxid> {
    entries.iter().map(|entry| entry.zxid).collect()
}

fn list(zxids: &[Zxid]) -> String {
    zxids.iter().map(Zxid::to_string).collect::<Vec<_>>().join(" ")
}
