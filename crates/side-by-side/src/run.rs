//! The rounds: limits and scenarios, both daemons in turns.

use std::path::Path;

use anyhow::{Context, Result};

use crate::Arguments;
use crate::daemon::Program;
use crate::limits::Limit;
use crate::noise::Noise;
use crate::outcome::{Outcome, Row};
use crate::placement::{self, Placement};
use crate::progress::Progress;
use crate::sample::{self, Sample, Subject};
use crate::scenario::Scenario;
use crate::series::Series;
use crate::warm::{self, Warm};

/// Measures everything, round by round.
pub(crate) fn measure(arguments: &Arguments) -> Result<Outcome> {
    let mut outcome = nothing(arguments);
    placement::look_around()?;
    // With two of warming the memory.
    let steps = outcome.limits.len() + outcome.rows.len() + 2;
    let mut progress = Progress::new(arguments.rounds, steps);
    for round in 0..arguments.rounds {
        progress.step(warm::NAME)?;
        let warm = Warm::up()?;
        for (&mut (limit, cores), series) in
            outcome.limits.iter_mut().map(|(of, series)| (of, series))
        {
            progress.step(&limit.name())?;
            let measured = series.add(|| limit.measure_watched(cores, outcome.sample));
            measured.with_context(|| format!("measure {}", limit.name()))?;
        }
        progress.step(warm::NAME)?;
        drop(warm);
        let _warm = Warm::up()?;
        for row in &mut outcome.rows {
            progress.step(&row.scenario.name)?;
            take_turns(arguments, row, round, &progress)?;
        }
    }
    progress.finish()?;
    Ok(outcome)
}

/// What is to be measured.
fn nothing(arguments: &Arguments) -> Outcome {
    let row = |mut scenario: Scenario| {
        scenario.placement = arguments.placement.unwrap_or(scenario.placement);
        Row {
            scenario,
            ours: Series::default(),
            incumbent: Series::default(),
        }
    };
    let chosen = |scenario: &Scenario| scenario.name.contains(&arguments.filter);
    let scenarios = Scenario::all().into_iter().filter(chosen);
    let rows: Vec<_> = scenarios.map(row).collect();
    let cores = arguments.placement.unwrap_or(Placement::Apart);
    let all = Limit::ALL.map(|limit| (limit, cores)).into_iter();
    let mut limits: Vec<_> = all.filter(|_| arguments.filter.is_empty()).collect();
    for Row { scenario, .. } in &rows {
        for limit in scenario
            .limits
            .iter()
            .chain(&scenario.floor)
            .map(|&limit| (limit, scenario.placement))
        {
            if !limits.contains(&limit) {
                limits.push(limit);
            }
        }
    }
    let limits = limits.into_iter();
    Outcome {
        limits: limits.map(|limit| (limit, Series::default())).collect(),
        rows,
        rounds: arguments.rounds,
        sample: arguments.sample(),
    }
}

fn take_turns(
    arguments: &Arguments,
    row: &mut Row,
    round: usize,
    progress: &Progress,
) -> Result<()> {
    let scenario = &row.scenario;
    let turn = |series: &mut Series<Sample>, path: &Path| {
        let program = Program {
            path,
            placement: scenario.placement,
        };
        series.add(|| {
            let taken = sample::take(program, scenario.subject, arguments.sample());
            // One that fails is as good as one that hangs; the others are measured still.
            taken.or_else(|error| {
                let name = &scenario.name;
                progress.complain(&format!("{}: {name}: {error:#}", path.display()))?;
                Ok((None, Noise::default()))
            })
        })
    };
    let with_incumbent = arguments.incumbent.as_deref();
    let incumbent = with_incumbent.filter(|_| !matches!(scenario.subject, Subject::Lookup(_)));
    // Nobody is always the first.
    let ours_first = round.is_multiple_of(2);
    if ours_first {
        turn(&mut row.ours, &arguments.ours)?;
    }
    if let Some(incumbent) = incumbent {
        turn(&mut row.incumbent, incumbent)?;
    }
    if !ours_first {
        turn(&mut row.ours, &arguments.ours)?;
    }
    Ok(())
}
