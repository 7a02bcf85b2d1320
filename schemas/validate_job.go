package schemas

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Limits of Jobs.
const (
	maxIndexedParallelism   = 100_000
	maxFailedIndexes        = 100_000
	manyCompletions         = 100_000
	maxParallelismOfMany    = 10_000
	maxFailedIndexesOfMany  = 10_000
	maxFailurePolicyRules   = 20
	maxFailureExitCodes     = 255
	maxFailureConditions    = 20
	maxManagedBy            = 63
	maxSuccessPolicyIndexes = 64 << 10
	maxSuccessPolicyRules   = 20
	maxCronJobName          = 52 // a Job's name adds 11 characters to it
)

var (
	completionModes     = []batchv1.CompletionMode{batchv1.NonIndexedCompletion, batchv1.IndexedCompletion}
	jobRestarts         = []corev1.RestartPolicy{corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}
	failureActions      = []batchv1.PodFailurePolicyAction{batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex, batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore}
	failureOperators    = []batchv1.PodFailurePolicyOnExitCodesOperator{batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn}
	conditionStates     = []corev1.ConditionStatus{corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown}
	replacementPolicies = []batchv1.PodReplacementPolicy{batchv1.Failed, batchv1.TerminatingOrFailed}
	concurrencyPolicies = []batchv1.ConcurrencyPolicy{batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent}
	timeZoneStep        = regexp.MustCompile(`^[A-Za-z\.\-_0-9+]{1,14}$`)
)

func indexed(s *batchv1.JobSpec) bool {
	return s.CompletionMode != nil && *s.CompletionMode == batchv1.IndexedCompletion
}

// validateJob checks a Job but for its metadata.
func validateJob(o *batchv1.Job, creating bool) field.ErrorList {
	var p problems
	s, at := &o.Spec, field.NewPath("spec")
	if creating {
		p.generatedSelector(o)
	}
	p.jobSpec(s, at)
	if s.Selector == nil {
		p.required(at.Child("selector"), "")
	}
	p.add(validSelector(s.Selector, at.Child("selector")))
	if sel, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil {
		p.selects(sel, s.Template.Labels, at.Child("template"))
	}
	if indexed(s) && s.Completions != nil && *s.Completions > 0 {
		last := fmt.Sprintf("%s-%d", o.Name, *s.Completions-1)
		for range validation.IsDNS1123Label(last) {
			p.invalid(field.NewPath("metadata", "name"), o.Name, "will not able to create pod with invalid DNS label: "+last)
		}
	}
	return p.found
}

// jobLabels are the labels of a Job's pods that tell them from all others'.
func jobLabels(o *batchv1.Job) map[string]string {
	return map[string]string{
		"controller-uid": string(o.UID), batchv1.ControllerUidLabel: string(o.UID),
		"job-name": o.Name, batchv1.JobNameLabel: o.Name,
	}
}

// generatedSelector checks that a Job which does not choose its pods by hand has
// the selector and the labels that SelectJobPods makes.
func (p *problems) generatedSelector(o *batchv1.Job) {
	if o.Spec.ManualSelector != nil && *o.Spec.ManualSelector || o.Spec.Selector == nil {
		return
	}
	if o.UID == "" {
		p.required(field.NewPath("metadata", "uid"), "")
	}
	want := jobLabels(o)
	for key, value := range want {
		switch has, ok := o.Spec.Template.Labels[key]; {
		case !ok:
			p.required(field.NewPath("spec", "template", "metadata", "labels").Key(key), "must be '"+value+"'")
		case has != value:
			p.invalid(field.NewPath("spec", "template", "metadata", "labels").Key(key), o.Spec.Template.Labels, "must be '"+value+"'")
		}
	}
	if s, err := metav1.LabelSelectorAsSelector(o.Spec.Selector); err == nil && !s.Matches(labels.Set(want)) {
		p.invalid(field.NewPath("spec", "selector"), o.Spec.Selector, "`selector` not auto-generated")
	}
}

// jobSpec checks what Jobs and the templates of them have.
func (p *problems) jobSpec(s *batchv1.JobSpec, at *field.Path) {
	p.notNegativePtr(s.Parallelism, at, "parallelism")
	p.notNegativePtr(s.Completions, at, "completions")
	if d := s.ActiveDeadlineSeconds; d != nil {
		p.notNegative(*d, at, "activeDeadlineSeconds")
	}
	p.notNegativePtr(s.BackoffLimit, at, "backoffLimit")
	p.notNegativePtr(s.TTLSecondsAfterFinished, at, "ttlSecondsAfterFinished")
	p.notNegativePtr(s.BackoffLimitPerIndex, at, "backoffLimitPerIndex")
	p.notNegativePtr(s.MaxFailedIndexes, at, "maxFailedIndexes")
	if s.MaxFailedIndexes != nil && s.BackoffLimitPerIndex == nil {
		p.required(at.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified")
	}
	if m := s.ManagedBy; m != nil {
		p.add(validation.IsDomainPrefixedPath(at.Child("managedBy"), *m))
		if len(*m) > maxManagedBy {
			p.tooLong(at.Child("managedBy"), maxManagedBy)
		}
	}
	choosePtr(p, s.CompletionMode, at, "completionMode", completionModes)
	switch {
	case indexed(s):
		p.indexedJob(s, at)
	case s.CompletionMode == nil || *s.CompletionMode == batchv1.NonIndexedCompletion:
		const why = "requires indexed completion mode"
		if s.BackoffLimitPerIndex != nil {
			p.invalid(at.Child("backoffLimitPerIndex"), *s.BackoffLimitPerIndex, why)
		}
		if s.MaxFailedIndexes != nil {
			p.invalid(at.Child("maxFailedIndexes"), *s.MaxFailedIndexes, why)
		}
	}
	if s.PodFailurePolicy != nil {
		p.failurePolicy(s, at.Child("podFailurePolicy", "rules"))
	}
	switch {
	case s.SuccessPolicy == nil:
	case !indexed(s):
		p.invalid(at.Child("successPolicy"), "", "requires indexed completion mode")
	default:
		p.successPolicy(s, at.Child("successPolicy", "rules"))
	}
	if r := s.PodReplacementPolicy; r != nil {
		valid := replacementPolicies
		if s.PodFailurePolicy != nil {
			valid = valid[:1]
		}
		choose(p, *r, at, "podReplacementPolicy", valid)
	}
	p.add(validatePodTemplate(&s.Template, at.Child("template")))
	restarts := at.Child("template", "spec")
	switch r := s.Template.Spec.RestartPolicy; {
	case r == corev1.RestartPolicyAlways || r == "":
		p.required(restarts.Child("restartPolicy"), fmt.Sprintf("valid values: %q, %q", corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever))
	case !slices.Contains(jobRestarts, r):
		choose(p, r, restarts, "restartPolicy", jobRestarts)
	case s.PodFailurePolicy != nil && r != corev1.RestartPolicyNever:
		p.invalid(restarts.Child("restartPolicy"), r, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever))
	}
}

func (p *problems) indexedJob(s *batchv1.JobSpec, at *field.Path) {
	const atMost = "must be less than or equal to %d"
	if s.Completions == nil {
		p.required(at.Child("completions"), "when completion mode is Indexed")
	}
	if n := s.Parallelism; n != nil && *n > maxIndexedParallelism {
		p.invalid(at.Child("parallelism"), *n, fmt.Sprintf(atMost+" when completion mode is Indexed", maxIndexedParallelism))
	}
	if n := s.MaxFailedIndexes; n != nil {
		if s.Completions != nil && *n > *s.Completions {
			p.invalid(at.Child("maxFailedIndexes"), *n, "must be less than or equal to completions")
		}
		if *n > maxFailedIndexes {
			p.invalid(at.Child("maxFailedIndexes"), *n, fmt.Sprintf(atMost, maxFailedIndexes))
		}
	}
	if s.Completions == nil || *s.Completions <= manyCompletions || s.BackoffLimitPerIndex == nil {
		return
	}
	const ofMany = atMost + " when completions are above %d and used with backoff limit per index"
	if s.MaxFailedIndexes == nil {
		p.required(at.Child("maxFailedIndexes"), fmt.Sprintf("must be specified when completions is above %d", manyCompletions))
	}
	if n := s.Parallelism; n != nil && *n > maxParallelismOfMany {
		p.invalid(at.Child("parallelism"), *n, fmt.Sprintf(ofMany, maxParallelismOfMany, manyCompletions))
	}
	if n := s.MaxFailedIndexes; n != nil && *n > maxFailedIndexesOfMany {
		p.invalid(at.Child("maxFailedIndexes"), *n, fmt.Sprintf(ofMany, maxFailedIndexesOfMany, manyCompletions))
	}
}

func (p *problems) failurePolicy(s *batchv1.JobSpec, at *field.Path) {
	rules := s.PodFailurePolicy.Rules
	if len(rules) > maxFailurePolicyRules {
		p.tooMany(at, len(rules), maxFailurePolicyRules)
	}
	for i := range rules {
		r, at := &rules[i], at.Index(i)
		switch {
		case r.Action == "":
			p.required(at.Child("action"), fmt.Sprintf("valid values: %q", failureActions))
		case r.Action == batchv1.PodFailurePolicyActionFailIndex && s.BackoffLimitPerIndex == nil:
			p.invalid(at.Child("action"), r.Action, "requires the backoffLimitPerIndex to be set")
		default:
			choose(p, r.Action, at, "action", failureActions)
		}
		if r.OnExitCodes != nil {
			p.failureExitCodes(r.OnExitCodes, &s.Template.Spec, at.Child("onExitCodes"))
		}
		if len(r.OnPodConditions) > maxFailureConditions {
			p.tooMany(at.Child("onPodConditions"), len(r.OnPodConditions), maxFailureConditions)
		}
		for j, c := range r.OnPodConditions {
			at := at.Child("onPodConditions").Index(j)
			p.check(validation.IsQualifiedName, string(c.Type), at, "type")
			if c.Status == "" {
				p.required(at.Child("status"), fmt.Sprintf("valid values: %q", conditionStates))
			} else {
				choose(p, c.Status, at, "status", conditionStates)
			}
		}
		switch codes, conditions := r.OnExitCodes != nil, len(r.OnPodConditions) > 0; {
		case codes && conditions:
			p.invalid(at, "", "specifying both OnExitCodes and OnPodConditions is not supported")
		case !codes && !conditions:
			p.invalid(at, "", "specifying one of OnExitCodes and OnPodConditions is required")
		}
	}
}

func (p *problems) failureExitCodes(e *batchv1.PodFailurePolicyOnExitCodesRequirement, pod *corev1.PodSpec, at *field.Path) {
	if e.Operator == "" {
		p.required(at.Child("operator"), fmt.Sprintf("valid values: %q", failureOperators))
	} else {
		choose(p, e.Operator, at, "operator", failureOperators)
	}
	if n := e.ContainerName; n != nil {
		named := func(c corev1.Container) bool { return c.Name == *n }
		if !slices.ContainsFunc(pod.Containers, named) && !slices.ContainsFunc(pod.InitContainers, named) {
			p.invalid(at.Child("containerName"), *n, "must be one of the container or initContainer names in the pod template")
		}
	}
	at = at.Child("values")
	switch {
	case len(e.Values) == 0:
		p.invalid(at, e.Values, "at least one value is required")
	case len(e.Values) > maxFailureExitCodes:
		p.tooMany(at, len(e.Values), maxFailureExitCodes)
	}
	for i, v := range e.Values {
		if v == 0 && e.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn {
			p.invalid(at.Index(i), v, "must not be 0 for the In operator")
		}
		if slices.Contains(e.Values[:i], v) {
			p.duplicate(at.Index(i), v)
		}
	}
	if !slices.IsSorted(e.Values) {
		p.invalid(at, e.Values, "must be ordered")
	}
}

func (p *problems) successPolicy(s *batchv1.JobSpec, at *field.Path) {
	rules := s.SuccessPolicy.Rules
	if len(rules) == 0 {
		p.required(at, "at least one rules must be specified when the successPolicy is specified")
	}
	if len(rules) > maxSuccessPolicyRules {
		p.tooMany(at, len(rules), maxSuccessPolicyRules)
	}
	if s.Completions == nil {
		return // refused already, and nothing to measure rules by
	}
	for i := range rules {
		r, at := &rules[i], at.Index(i)
		if r.SucceededCount == nil && r.SucceededIndexes == nil {
			p.required(at, "at least one of succeededCount or succeededIndexes must be specified")
		}
		total := int32(0)
		if r.SucceededIndexes != nil {
			at := at.Child("succeededIndexes")
			if len(*r.SucceededIndexes) > maxSuccessPolicyIndexes {
				p.tooLong(at, maxSuccessPolicyIndexes)
			}
			n, err := countIndexes(*r.SucceededIndexes, *s.Completions)
			if err != nil {
				p.invalid(at, *r.SucceededIndexes, "error parsing succeededIndexes: "+err.Error())
			}
			total = n
		}
		if n := r.SucceededCount; n != nil {
			p.notNegative(int64(*n), at, "succeededCount")
			if *n > *s.Completions {
				p.invalid(at.Child("succeededCount"), *n, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", *s.Completions))
			}
			if r.SucceededIndexes != nil && *n > total {
				p.invalid(at.Child("succeededCount"), *n, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", total))
			}
		}
	}
}

// countIndexes reads a list such as "0,2-4", which has to rise and stay below
// completions.
func countIndexes(list string, completions int32) (int32, error) {
	if list == "" {
		return 0, nil
	}
	total, last := int32(0), int32(-1)
	for piece := range strings.SplitSeq(list, ",") {
		from, to, err := indexRange(piece, completions)
		if err != nil {
			return 0, err
		}
		if total > 0 && last >= from {
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", last, from)
		}
		total += to - from + 1
		last = to
	}
	return total, nil
}

func indexRange(piece string, completions int32) (from, to int32, err error) {
	ends := strings.Split(piece, "-")
	if len(ends) > 2 {
		return 0, 0, fmt.Errorf("the fragment %q violates the requirement that an index interval can have at most two parts separated by '-'", piece)
	}
	var n [2]int
	for i, e := range ends {
		if n[i], err = strconv.Atoi(e); err != nil {
			return 0, 0, fmt.Errorf("cannot convert string to integer for index: %q", e)
		}
		if n[i] >= int(completions) {
			return 0, 0, fmt.Errorf("too large index: %q", e)
		}
	}
	if len(ends) == 1 {
		return int32(n[0]), int32(n[0]), nil
	}
	if n[0] >= n[1] {
		return 0, 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", n[0], n[1])
	}
	return int32(n[0]), int32(n[1]), nil
}

// validateJobUpdate checks what may not change.
func validateJobUpdate(updated, old *batchv1.Job) field.ErrorList {
	var p problems
	n, o, at := &updated.Spec, &old.Spec, field.NewPath("spec")
	switch same := equality.Semantic.DeepEqual(n.Completions, o.Completions); {
	case !indexed(n):
		p.add(unchanged(n.Completions, o.Completions, at.Child("completions")))
	case !same && n.Completions != nil && n.Parallelism != nil && *n.Completions != *n.Parallelism:
		p.invalid(at.Child("completions"), *n.Completions, "can only be modified in tandem with spec.parallelism")
	}
	p.add(unchanged(n.Selector, o.Selector, at.Child("selector")))
	p.jobTemplateUpdate(n, old, at)
	p.add(unchanged(n.CompletionMode, o.CompletionMode, at.Child("completionMode")))
	p.add(unchanged(n.PodFailurePolicy, o.PodFailurePolicy, at.Child("podFailurePolicy")))
	p.add(unchanged(n.BackoffLimitPerIndex, o.BackoffLimitPerIndex, at.Child("backoffLimitPerIndex")))
	p.add(unchanged(n.ManagedBy, o.ManagedBy, at.Child("managedBy")))
	p.add(unchanged(n.SuccessPolicy, o.SuccessPolicy, at.Child("successPolicy")))
	return p.found
}

// jobTemplateUpdate: while a Job is suspended and none of its pods is left, it
// may still be told where they run and what they get.
func (p *problems) jobTemplateUpdate(n *batchv1.JobSpec, old *batchv1.Job, at *field.Path) {
	if !idle(old) {
		p.add(unchanged(n.Template, old.Spec.Template, at.Child("template")))
		return
	}
	was := old.Spec.Template.DeepCopy()
	is := &n.Template
	if a, b := was.Spec.Affinity, is.Spec.Affinity; a == nil && b != nil {
		was.Spec.Affinity = &corev1.Affinity{NodeAffinity: b.NodeAffinity}
	} else if a != nil {
		a.NodeAffinity = nil
		if b != nil {
			a.NodeAffinity = b.NodeAffinity
		} else if *a == (corev1.Affinity{}) {
			was.Spec.Affinity = nil
		}
	}
	was.Spec.NodeSelector, was.Spec.Tolerations, was.Spec.SchedulingGates = is.Spec.NodeSelector, is.Spec.Tolerations, is.Spec.SchedulingGates
	for _, lists := range [][2][]corev1.Container{{was.Spec.Containers, is.Spec.Containers}, {was.Spec.InitContainers, is.Spec.InitContainers}} {
		if len(lists[0]) != len(lists[1]) {
			continue
		}
		for i := range lists[0] {
			if lists[0][i].Name == lists[1][i].Name {
				lists[0][i].Resources = lists[1][i].Resources
			}
		}
	}
	p.add(unchanged(is.Spec, was.Spec, at.Child("template.spec")))
}

// idle says that a Job is suspended and has no pod: it never started, or its
// controller has said that it stopped.
func idle(o *batchv1.Job) bool {
	if o.Spec.Suspend == nil || !*o.Spec.Suspend || o.Status.Active > 0 {
		return false
	}
	return o.Status.StartTime == nil || slices.ContainsFunc(o.Status.Conditions, func(c batchv1.JobCondition) bool {
		return c.Type == batchv1.JobSuspended && c.Status == corev1.ConditionTrue
	})
}

// validateCronJob checks a CronJob but for its metadata; old is nil for a new one.
func validateCronJob(o, old *batchv1.CronJob) field.ErrorList {
	var p problems
	s, at := &o.Spec, field.NewPath("spec")
	if old == nil && len(o.Name) > maxCronJobName {
		p.invalid(field.NewPath("metadata", "name"), o.Name, fmt.Sprintf("must be no more than %d characters", maxCronJobName))
	}
	if s.Schedule == "" {
		p.required(at.Child("schedule"), "")
	} else {
		p.schedule(s, old != nil && strings.Contains(old.Spec.Schedule, "TZ"), at.Child("schedule"))
	}
	if d := s.StartingDeadlineSeconds; d != nil {
		p.notNegative(*d, at, "startingDeadlineSeconds")
	}
	if s.TimeZone != nil && (old == nil || !equality.Semantic.DeepEqual(s.TimeZone, old.Spec.TimeZone)) {
		p.timeZone(*s.TimeZone, at.Child("timeZone"))
	}
	chooseRequired(&p, s.ConcurrencyPolicy, at, "concurrencyPolicy", concurrencyPolicies)
	p.notNegativePtr(s.SuccessfulJobsHistoryLimit, at, "successfulJobsHistoryLimit")
	p.notNegativePtr(s.FailedJobsHistoryLimit, at, "failedJobsHistoryLimit")
	job, at := &s.JobTemplate.Spec, at.Child("jobTemplate", "spec")
	p.jobSpec(job, at)
	if job.Selector != nil {
		p.invalid(at.Child("selector"), job.Selector, "`selector` will be auto-generated")
	}
	if job.ManualSelector != nil && *job.ManualSelector {
		p.found = append(p.found, field.NotSupported(at.Child("manualSelector"), true, []string{"nil", "false"}))
	}
	return p.found
}

func (p *problems) schedule(s *batchv1.CronJobSpec, hadZone bool, at *field.Path) {
	if err := parseSchedule(s.Schedule); err != nil {
		p.invalid(at, s.Schedule, err.Error())
	}
	switch zoned := strings.Contains(s.Schedule, "TZ"); {
	case zoned && !hadZone:
		p.invalid(at, s.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
	case zoned && s.TimeZone != nil:
		p.invalid(at, s.Schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule")
	}
}

// parseSchedule reads a schedule as its controller will. The parser panics on
// some broken input.
func parseSchedule(schedule string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("invalid schedule format: %v", r)
		}
	}()
	_, err = cron.ParseStandard(schedule)
	return err
}

func (p *problems) timeZone(zone string, at *field.Path) {
	if zone == "" {
		p.invalid(at, zone, "timeZone must be nil or non-empty string")
		return
	}
	// Whatever the name, it stays below the directory of time zones.
	for step := range strings.SplitSeq(zone, "/") {
		if step == "." || step == ".." || strings.HasPrefix(step, "-") || !timeZoneStep.MatchString(step) {
			p.invalid(at, zone, "unknown time zone "+zone)
			return
		}
	}
	if strings.EqualFold(zone, "Local") {
		p.invalid(at, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")
	}
	if _, err := time.LoadLocation(zone); err != nil {
		p.invalid(at, zone, err.Error())
	}
}
