//! The runtime that every long-running command uses: one thread, local tasks.

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

/// Runs `future` on a `current_thread` runtime within a `LocalSet`.
pub(crate) fn block_on_local<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, future)
}

/// Ends at the first SIGTERM or SIGINT.
pub(crate) async fn termination() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be caught: only a kill ends this process");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
