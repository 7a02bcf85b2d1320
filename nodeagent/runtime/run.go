//go:build linux

package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/runtime/rundir"
	"gantry.dev/nodeagent/runtime/want"
)

// Start asks for one run and does not wait for it. Asking again for the same
// pod, name and attempt does nothing, whatever became of the run: the order is
// a file that is made once, and the shim claims it once.
func (r *Runtime) Start(ctx context.Context, c Container) error {
	if err := checkRun(c.Name, c.Attempt); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	p := r.pods.get(c.PodUID)
	if p == nil || p.running() == nil {
		return fmt.Errorf("start %s of %s: %w", c.Name, c.PodUID, ErrNoSandbox)
	}
	if err := r.order(p, c); err != nil {
		return fmt.Errorf("start %s of %s: %w", c.Name, c.PodUID, err)
	}
	return r.wakeShim(r.podDir(c.PodUID))
}

func (r *Runtime) order(p *pod, c Container) error {
	dir := r.runDir(c.PodUID, c.Name, c.Attempt)
	path := filepath.Join(dir, rundir.Want)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	name := rundir.RunName(c.Name, c.Attempt)
	w := want.Run{
		Container:   c,
		Cgroup:      filepath.Join("/", r.opt.CgroupRoot, podCgroup(c.PodUID), name),
		Base:        r.baseDir(),
		Scratch:     filepath.Join(r.scratchDir(c.PodUID), name),
		Cache:       r.cacheDir(),
		HostNetwork: p.sandbox.HostNetwork,
	}
	if r.oom.refuses(c.OOMScoreAdj) {
		r.oom.warn.Do(func() {
			r.log.Warn().Int("lowest", r.oom.own).Msg("oom_score_adj is not lowered: CAP_SYS_RESOURCE is missing")
		})
		w.OOMScoreAdj = nil
	}
	b, err := json.Marshal(w)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := makeInput(dir, c); err != nil {
		return err
	}
	// Linked and not renamed into place: the first order stands.
	tmp, err := os.CreateTemp(dir, "want-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(b)
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Link(tmp.Name(), path)
	}
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// Signal sends a signal to the run's first process. A run that has ended is no
// error; one that does not execute yet is ErrNotRunning.
func (r *Runtime) Signal(ctx context.Context, uid types.UID, name string, attempt int, sig syscall.Signal) error {
	if err := r.signal(uid, name, attempt, sig); err != nil {
		return fmt.Errorf("signal %s of %s: %w", name, uid, err)
	}
	return nil
}

func (r *Runtime) signal(uid types.UID, name string, attempt int, sig syscall.Signal) error {
	run, st, err := r.find(uid, name, attempt)
	if err != nil {
		return err
	}
	if st.Phase.Ended() {
		return nil
	}
	b, ok := run.read(rundir.PID)
	n, ok2 := rundir.ParseInts(b, 3)
	if !ok || !ok2 {
		return ErrNotRunning
	}
	fd, err := openProcess(int(n[0]), n[1])
	if errors.Is(err, unix.ESRCH) {
		return nil // ended, and its end is about to be written
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// find returns a run and what is seen of it.
func (r *Runtime) find(uid types.UID, name string, attempt int) (runFiles, ContainerState, error) {
	if err := checkRun(name, attempt); err != nil {
		return runFiles{}, ContainerState{}, err
	}
	p := r.pods.get(uid)
	if p == nil {
		return runFiles{}, ContainerState{}, ErrNoSandbox
	}
	run := runFiles{name: rundir.RunName(name, attempt), dir: r.runDir(uid, name, attempt)}
	st, ok := run.state(p.running() != nil)
	if !ok {
		return run, st, ErrNotRunning
	}
	return run, st, nil
}

// Remove removes what an ended run left: files, cgroup, writable layer. Its log
// stays. Removing what is not there is no error; a run that has not ended is
// ErrRunning.
func (r *Runtime) Remove(ctx context.Context, uid types.UID, name string, attempt int) error {
	run, st, err := r.find(uid, name, attempt)
	if errors.Is(err, ErrNoSandbox) {
		return nil
	}
	if err != nil && !errors.Is(err, ErrNotRunning) {
		return fmt.Errorf("remove %s of %s: %w", name, uid, err)
	}
	if err == nil && !st.Phase.Ended() {
		return fmt.Errorf("remove %s of %s: %w", name, uid, ErrRunning)
	}
	p := r.pods.get(uid)
	sub := filepath.Join(podCgroup(uid), run.name)
	steps := []func() error{
		func() error { return r.cg.kill(ctx, sub) }, // a command that was run in it
		func() error { return r.cg.remove(ctx, sub) },
		func() error {
			upper, work := rundir.Layer(filepath.Join(r.scratchDir(uid), run.name))
			return errors.Join(os.RemoveAll(upper), os.RemoveAll(work))
		},
		// Taken away whole: were it emptied in place, the shim could find the
		// order and not the claim.
		func() error { return r.discard(uid, run) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("remove %s of %s: %w", name, uid, err)
		}
	}
	if p != nil {
		p.uncache(run.name)
	}
	return nil
}

func (r *Runtime) discard(uid types.UID, run runFiles) error {
	gone := filepath.Join(r.podDir(uid), "gone-"+run.name)
	if err := os.Rename(run.dir, gone); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.RemoveAll(gone)
}

// checkRun refuses names that would not stay inside their directory, or that
// the name of a run's directory could not carry.
func checkRun(name string, attempt int) error {
	if err := checkName("container name", name); err != nil {
		return err
	}
	if strings.Contains(name, ".") || attempt < 0 {
		return fmt.Errorf("invalid run %s, attempt %d", name, attempt)
	}
	return nil
}

// oomLimit is how far oom_score_adj can be lowered by us.
type oomLimit struct {
	own  int
	may  bool // CAP_SYS_RESOURCE
	warn *sync.Once
}

func ownOOMLimit() oomLimit {
	l := oomLimit{warn: &sync.Once{}}
	if b, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		l.own, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) == nil {
		l.may = data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
	}
	return l
}

func (l oomLimit) refuses(adj *int) bool {
	return adj != nil && !l.may && *adj < l.own
}
