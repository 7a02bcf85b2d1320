//go:build linux

// Package stats says what the node and its containers use now. It measures
// only when it is asked: while nobody wants to know, it costs nothing.
package stats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

const (
	// freshFor is how long an answer is given again: who asks more often than
	// that asks for the same.
	freshFor = time.Second
	// baseFor is how old a measurement may be that CPU is compared with.
	baseFor = time.Minute
	// window is how long is measured where there is nothing to compare with.
	window = 300 * time.Millisecond
)

// Pod is a pod as the node runs it.
type Pod struct {
	Namespace, Name string
	UID             types.UID
	// Runs are the cgroups of the containers that run, by container.
	Runs map[string]string
}

// Options say where to look.
type Options struct {
	// Cgroup is the node's own below every controller's mount, such as
	// /gantry-n1; a container's is <Cgroup>/pod<uid>/<run>.
	Cgroup string
	// Pods lists what runs.
	Pods func() []Pod
	// Mount is where the cgroups are, /sys/fs/cgroup where it is empty, and
	// Proc the kernel's processes, /proc.
	Mount, Proc string
}

// Sampler measures. Its methods are safe for concurrent use; who asks while it
// measures gets what is being measured.
type Sampler struct {
	o     Options
	files cgroupFiles
	now   func() time.Time
	sleep func(context.Context, time.Duration) error

	turn   chan struct{} // taken by who measures; a mutex that can be waited for
	base   *sample
	answer schemas.NodeStats
}

// sample is the CPU that was used up to a moment, in nanoseconds.
type sample struct {
	at   time.Time
	node uint64
	runs map[runKey]uint64
}

type runKey struct {
	pod types.UID
	run string
}

// New returns a sampler that has measured nothing.
func New(o Options) *Sampler {
	if o.Mount == "" {
		o.Mount = "/sys/fs/cgroup"
	}
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	return &Sampler{o: o, files: findFiles(o.Mount), now: time.Now, sleep: sleep, turn: make(chan struct{}, 1)}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Answer answers schemas.NodeMethodStats.
func (s *Sampler) Answer(ctx context.Context, _ map[string][]string, _ []byte) ([]byte, map[string][]string, error) {
	stats, err := s.Stats(ctx)
	if err != nil {
		return nil, nil, err
	}
	body, err := json.Marshal(stats)
	return body, nil, err
}

// Stats is what is used now, or was a second ago. It takes a third of a second
// where nothing was measured within the last minute, or something new runs.
func (s *Sampler) Stats(ctx context.Context) (schemas.NodeStats, error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return schemas.NodeStats{}, ctx.Err()
	}
	defer func() { <-s.turn }()
	if s.base != nil && s.now().Sub(s.base.at) < freshFor {
		return s.answer, nil
	}
	pods := s.o.Pods()
	if !s.comparable(pods) {
		if err := s.start(ctx, pods); err != nil {
			return schemas.NodeStats{}, err
		}
	}
	end, err := s.sample(pods)
	if err != nil {
		return schemas.NodeStats{}, err
	}
	answer, err := s.compare(pods, *s.base, end)
	if err != nil {
		return schemas.NodeStats{}, err
	}
	s.base, s.answer = &end, answer
	return answer, nil
}

// comparable says that there is a measurement, not too old, of all that runs.
func (s *Sampler) comparable(pods []Pod) bool {
	if s.base == nil || s.now().Sub(s.base.at) > baseFor {
		return false
	}
	for _, p := range pods {
		for _, run := range p.Runs {
			if _, ok := s.base.runs[runKey{p.UID, run}]; !ok {
				return false
			}
		}
	}
	return true
}

func (s *Sampler) start(ctx context.Context, pods []Pod) error {
	begin, err := s.sample(pods)
	if err != nil {
		return err
	}
	if err := s.sleep(ctx, window); err != nil {
		return err
	}
	s.base = &begin
	return nil
}

// sample reads what was used. What has ended meanwhile is left out.
func (s *Sampler) sample(pods []Pod) (sample, error) {
	out := sample{at: s.now(), runs: map[runKey]uint64{}}
	var err error
	if out.node, err = nodeCPU(s.o.Proc); err != nil {
		return out, err
	}
	for _, p := range pods {
		for _, run := range p.Runs {
			used, err := s.files.cpu(s.path(p.UID, run))
			if gone(err) {
				continue
			}
			if err != nil {
				return out, fmt.Errorf("read CPU of %s in pod %s/%s: %w", run, p.Namespace, p.Name, err)
			}
			out.runs[runKey{p.UID, run}] = used
		}
	}
	return out, nil
}

func (s *Sampler) path(uid types.UID, run string) string {
	return filepath.Join(s.o.Cgroup, "pod"+string(uid), run)
}

// compare makes rates of two measurements, and reads memory.
func (s *Sampler) compare(pods []Pod, begin, end sample) (schemas.NodeStats, error) {
	span := end.at.Sub(begin.at)
	out := schemas.NodeStats{Time: metav1.NewTime(end.at), WindowSeconds: span.Seconds()}
	var err error
	if out.Node.MemoryBytes, err = nodeMemory(s.o.Proc); err != nil {
		return out, err
	}
	out.Node.NanoCPUs = rate(begin.node, end.node, span)
	for _, p := range pods {
		one := schemas.PodStats{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Containers: map[string]schemas.Usage{}}
		for name, run := range p.Runs {
			before, ok1 := begin.runs[runKey{p.UID, run}]
			after, ok2 := end.runs[runKey{p.UID, run}]
			if !ok1 || !ok2 {
				continue
			}
			memory, err := s.files.memory(s.path(p.UID, run))
			if gone(err) {
				continue
			}
			if err != nil {
				return out, fmt.Errorf("read memory of %s in pod %s/%s: %w", run, p.Namespace, p.Name, err)
			}
			one.Containers[name] = schemas.Usage{NanoCPUs: rate(before, after, span), MemoryBytes: memory}
		}
		if len(one.Containers) > 0 {
			out.Pods = append(out.Pods, one)
		}
	}
	return out, nil
}

// rate is nanoseconds of CPU per second. A counter that went back was begun
// anew and says nothing yet.
func rate(before, after uint64, span time.Duration) uint64 {
	if after <= before || span <= 0 {
		return 0
	}
	return uint64(float64(after-before) / span.Seconds())
}

// gone says that a cgroup was removed, before or while it was read.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoDevice)
}
