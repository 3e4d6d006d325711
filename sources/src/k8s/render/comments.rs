//! Why each field of a manifest is as it is.

/// Field and reason.
const REASONS: [(&str, &str); 37] = [
    (
        "activeDeadlineSeconds",
        "a run that hangs would keep all others from starting",
    ),
    (
        "allowPrivilegeEscalation",
        "asked by the standard \"restricted\"",
    ),
    (
        "automountServiceAccountToken",
        "only where the API is asked",
    ),
    (
        "backoffLimit",
        "a retry helps after a fault of the network or of a machine",
    ),
    ("capabilities", "asked by the standard \"restricted\""),
    (
        "cluster-autoscaler.kubernetes.io/safe-to-evict",
        "a run that is moved begins anew",
    ),
    (
        "concurrencyPolicy",
        "two runs at once would only slow each other down",
    ),
    (
        "cpu",
        "a floor; no limit, since an idle machine's processor is free",
    ),
    (
        "enableServiceLinks",
        "variables of every Service of the namespace could be taken for settings",
    ),
    (
        "exitCodes",
        "what a retry cannot mend: usage, partial, settings, nothing found, refused, corrupt, stale",
    ),
    ("failedJobsHistoryLimit", "the evidence of the last failure"),
    ("fsGroup", "volumes can be read and written by the process"),
    (
        "fsGroupChangePolicy",
        "owners of a large volume are not changed at every start",
    ),
    ("limits", "more is a fault, and ends that run alone"),
    (
        "memory",
        "a run needs 256 MiB; with several databases side by side more",
    ),
    (
        "onPodConditions",
        "a pod that was evicted is started again and counts as no failure",
    ),
    ("podFailurePolicy", "rules are tried in this order"),
    ("podReplacementPolicy", "never two pods on one volume"),
    (
        "readOnlyRootFilesystem",
        "nothing is written but into volumes",
    ),
    ("requests", "what a machine must have free"),
    (
        "requiredDuringSchedulingIgnoredDuringExecution",
        "a claim that one machine mounts is seen on that machine alone",
    ),
    (
        "restartPolicy",
        "each try has a pod of its own, whose log stays",
    ),
    ("runAsNonRoot", "asked by the standard \"restricted\""),
    ("runAsUser", "whoever owns the volumes that are read"),
    (
        "schedule",
        "minute hour day month weekday, in the zone below",
    ),
    ("seccompProfile", "asked by the standard \"restricted\""),
    ("secretKeyRef", "never the value itself"),
    (
        "serviceAccountName",
        "backups may read, restores may write: two accounts",
    ),
    ("sizeLimit", "temporary files are small"),
    (
        "startingDeadlineSeconds",
        "a run that could not start in this time is skipped, and after a long stop not all that were missed are made up for",
    ),
    (
        "successfulJobsHistoryLimit",
        "the evidence of the last good runs",
    ),
    (
        "suspend",
        "the switch: kubectl patch cronjob NAME -p '{\"spec\":{\"suspend\":false}}'; by hand it always runs: kubectl create job --from=cronjob/NAME NAME-now",
    ),
    (
        "terminationGracePeriodSeconds",
        "time to end tidily: what is half written gets no name",
    ),
    (
        "terminationMessagePolicy",
        "the last lines of the log are the Job's message",
    ),
    ("timeZone", "without it the zone is the control plane's own"),
    (
        "ttlSecondsAfterFinished",
        "a one-off run is cleared away after 7 days",
    ),
    (
        "volumeClaimTemplate",
        "a volume of each run's own, which goes with its pod",
    ),
];

/// The YAML with reasons at the ends of lines.
pub fn beside(yaml: &str) -> String {
    let mut text = String::with_capacity(yaml.len() * 2);
    let mut within: Option<usize> = None;
    for line in yaml.lines() {
        let indent = line.len() - line.trim_start().len();
        // Lines of a text of several are nobody's fields.
        let is_text = within.is_some_and(|start| indent > start || line.trim().is_empty());
        if !is_text {
            within = line
                .ends_with(['|', '>', '-'])
                .then_some(indent)
                .filter(|_| line.contains(": |") || line.contains(": >"));
        }
        text.push_str(line);
        if !is_text
            && within.is_none()
            && let Some(why) = reason(line)
        {
            text.push_str("  # ");
            text.push_str(why);
        }
        text.push('\n');
    }
    text
}

fn reason(line: &str) -> Option<&'static str> {
    let field = line.trim_start().trim_start_matches("- ");
    let (name, _) = field.split_once(':')?;
    let name = name.trim_matches(['"', '\'']);
    let found = REASONS.iter().find(|(field, _)| *field == name);
    found.map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use super::{REASONS, beside};

    #[test]
    fn reasons_stand_beside_fields_and_never_inside_of_texts() {
        let yaml = "spec:\n  suspend: true\n  list:\n  - schedule: \"0 0 * * *\"\n  text: |-\n    suspend: true\n\n    cpu: 1\n  memory: 1Gi\n";
        let with = beside(yaml);
        assert_eq!(with.matches("  # ").count(), 3, "{with}");
        assert!(with.contains("    suspend: true\n\n    cpu: 1\n"));
        assert!(REASONS.windows(2).all(|two| two[0].0 < two[1].0));
    }
}
