//! The nine scenes, in the order they are played: each acts through the Kubernetes API and says what it saw.

mod backends;
mod changes;
mod names;
mod outside;

use std::time::Duration;

use super::report::{Limit, Scene, SceneReport};
use super::stage::Stage;

/// How late after a kill a request may still fail.
const KILL_LIMIT: Duration = Duration::from_secs(3);
/// For what takes a moment when all is well.
const PATIENCE: Duration = Duration::from_secs(30);
/// For what includes noticing that a node is dead, or starting one.
const LONG_PATIENCE: Duration = Duration::from_secs(60);

pub(super) const COUNT: usize = NAMES.len();

const NAMES: [&str; 9] = [
    "three backends behind a Service",
    "a pod is killed",
    "a node loses its power",
    "scaling and a rolling change",
    "a NodePort on every node",
    "a LoadBalancer address, kept over a restart",
    "an ExternalName",
    "a Service without a selector",
    "a headless Service",
];

fn scene(number: u8) -> Scene {
    let limit = if matches!(number, 2 | 3) { Limit::Within(KILL_LIMIT) } else { Limit::None };
    Scene::new(number, NAMES[usize::from(number) - 1], limit)
}

/// Plays every scene. One that breaks off does not keep the others from being tried, but for those the rest stand on.
pub(super) async fn play(stage: &mut Stage<'_>, mut tell: impl FnMut(SceneReport)) {
    for number in 1..=9 {
        stage.progress.scene(number, NAMES[usize::from(number) - 1]);
        let played = match number {
            1 => backends::three_behind_a_service(stage).await,
            2 => backends::pod_killed(stage).await,
            3 => backends::power_cut(stage).await,
            4 => changes::scaling_and_rolling(stage).await,
            5 => outside::node_port(stage).await,
            6 => outside::load_balancer(stage).await,
            7 => names::external_name(stage).await,
            8 => names::hand_written_slice(stage).await,
            _ => names::headless(stage).await,
        };
        let broken = played.is_err();
        let report = played.unwrap_or_else(|error| scene(number).broken_off(format!("{error:#}")));
        stage.progress.done(&report);
        tell(report);
        if broken {
            if matches!(number, 1 | 6) || stage.cluster.over().is_some() {
                stage.progress.fact("the scenes after this one stand on it and are left out");
                return;
            }
            // What the front end saw of a scene that broke off is not the next one's.
            stage.load.take();
        }
    }
}
