//go:build linux

package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/runtime/rundir"
)

// Errors to ask for with errors.Is.
var (
	// ErrNoSandbox: there is no sandbox, or its shim does not run.
	ErrNoSandbox = errors.New("no sandbox")
	// ErrNotRunning: the run has not begun to execute yet, or was never asked for.
	ErrNotRunning = errors.New("not running")
	// ErrRunning: the run has not ended.
	ErrRunning = errors.New("still running")
	// ErrRemoving: the sandbox is being removed; its UID never comes back.
	ErrRemoving = errors.New("sandbox is being removed")
)

// Options of a Runtime. All directories are made if missing.
type Options struct {
	StateDir   string // on disk: writable layers
	RunDir     string // gone after a reboot: everything else
	CgroupRoot string // below every controller's mount, for example "/gantry-node1"
	Shim       string // path of gantry-shim; default beside the executable
	Launcher   string // path of gantry-launcher; default beside the executable
	Log        zerolog.Logger
}

// Runtime runs the pods of one node. Its methods may be called at the same
// time; there is one Runtime per RunDir, also across processes.
type Runtime struct {
	opt      Options
	log      zerolog.Logger
	pods     podMap
	wakes    *wakes
	wakeFifo *os.File
	lock     *os.File
	launcher *os.File // sealed memfd
	spawn    *spawner
	cg       cgroups
	oom      oomLimit
	closing  context.CancelFunc
	done     context.Context
	readers  sync.WaitGroup
}

// Open prepares the directories and takes over the pods that run. It stops
// none. It fails if another agent has the same RunDir.
func Open(ctx context.Context, opt Options) (_ *Runtime, err error) {
	if err := complete(&opt); err != nil {
		return nil, err
	}
	r := &Runtime{opt: opt, log: opt.Log, wakes: newWakes(), cg: findCgroups(opt.CgroupRoot)}
	r.done, r.closing = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	if r.lock, err = lockRetry(ctx, filepath.Join(opt.RunDir, "agent.lock")); err != nil {
		return nil, fmt.Errorf("take over %s (is another agent running?): %w", opt.RunDir, err)
	}
	if err := os.MkdirAll(r.cacheDir(), 0o700); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	r.oom = ownOOMLimit()
	if r.spawn, err = newSpawner(r.cg); err != nil {
		return nil, err
	}
	go r.wakes.run(r.done)
	if err := r.adopt(ctx); err != nil {
		return nil, err
	}
	if err := r.clearScratch(); err != nil {
		return nil, err
	}
	if err := makeBase(r.baseDir()); err != nil {
		return nil, fmt.Errorf("make base of root filesystems: %w", err)
	}
	if r.launcher, err = r.launcherFile(); err != nil {
		return nil, fmt.Errorf("load launcher: %w", err)
	}
	if err := r.hear(); err != nil {
		return nil, fmt.Errorf("listen to shims: %w", err)
	}
	return r, nil
}

// complete fills in defaults and makes the directories. RunDir must be without
// links: libcontainer insists on it for root filesystems.
func complete(opt *Options) error {
	if opt.StateDir == "" || opt.RunDir == "" || opt.CgroupRoot == "" {
		return errors.New("open runtime: StateDir, RunDir and CgroupRoot are needed")
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find executable: %w", err)
	}
	for _, p := range []struct {
		path *string
		name string
	}{{&opt.Shim, "gantry-shim"}, {&opt.Launcher, "gantry-launcher"}} {
		if *p.path == "" {
			*p.path = filepath.Join(filepath.Dir(exe), p.name)
		}
		if _, err := os.Stat(*p.path); err != nil {
			return fmt.Errorf("find %s: %w", p.name, err)
		}
	}
	for _, d := range []*string{&opt.StateDir, &opt.RunDir} {
		if err := os.MkdirAll(filepath.Join(*d, "pods"), 0o711); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		if *d, err = filepath.Abs(*d); err != nil {
			return err
		}
		if *d, err = filepath.EvalSymlinks(*d); err != nil {
			return err
		}
	}
	return nil
}

// Close lets go of everything and stops nothing: pods run on.
func (r *Runtime) Close() {
	r.closing()
	if r.wakeFifo != nil {
		_ = r.wakeFifo.Close()
	}
	r.pods.each(func(p *pod) { p.letGo() })
	r.readers.Wait()
	if r.spawn != nil {
		r.spawn.close()
	}
	for _, f := range []*os.File{r.launcher, r.lock} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// hear reads the FIFO into which shims write whose pod has changed.
func (r *Runtime) hear() error {
	path := r.wakePath()
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// For reading and writing, so that it never reports the end of file.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	r.wakeFifo = f
	r.readers.Add(1)
	go func() {
		defer r.readers.Done()
		for in := bufio.NewScanner(f); in.Scan(); {
			r.wakes.add(types.UID(in.Text()))
		}
	}()
	return nil
}

// Wakes tells that something about a pod may have changed. It carries nothing
// else, and losing or doubling it is harmless.
func (r *Runtime) Wakes() <-chan types.UID { return r.wakes.out }

// LogPath is where the log of a run is, whether or not it exists yet. Its lines
// are "2006-01-02T15:04:05.000000000Z stdout F text".
func (r *Runtime) LogPath(s Sandbox, name string, attempt int) string {
	return filepath.Join(s.LogDir, name, strconv.Itoa(attempt)+".log")
}

func (r *Runtime) wakePath() string { return filepath.Join(r.opt.RunDir, "wake") }

func (r *Runtime) cacheDir() string { return filepath.Join(r.opt.RunDir, "cache") }

// baseDir is on the disk of the writable layers: files of one overlay that come
// from several filesystems show it in their device numbers.
func (r *Runtime) baseDir() string { return filepath.Join(r.opt.StateDir, "base") }

// makeBase makes what is mounted over in every container. An image's own files
// cover it.
func makeBase(dir string) error {
	for _, d := range []string{"", "dev", "etc", "proc", "sys"} {
		d = filepath.Join(dir, d)
		if err := errors.Join(os.MkdirAll(d, 0o755), os.Chmod(d, 0o755)); err != nil { // whatever the umask is
			return err
		}
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		f, err := os.OpenFile(filepath.Join(dir, "etc", name), os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runtime) podDir(uid types.UID) string {
	return filepath.Join(r.opt.RunDir, "pods", string(uid))
}

func (r *Runtime) scratchDir(uid types.UID) string {
	return filepath.Join(r.opt.StateDir, "pods", string(uid))
}

func (r *Runtime) runDir(uid types.UID, name string, attempt int) string {
	return filepath.Join(r.podDir(uid), rundir.Runs, rundir.RunName(name, attempt))
}

// checkName refuses what would be another path than a child of its directory.
func checkName(what, s string) error {
	if s == "" || s == "." || s == ".." || filepath.Base(s) != s {
		return fmt.Errorf("invalid %s %q", what, s)
	}
	return nil
}

// clearScratch removes writable layers whose pod is unknown here: what a
// reboot, or a crash in the middle of a removal, left over.
func (r *Runtime) clearScratch() error {
	entries, err := os.ReadDir(filepath.Join(r.opt.StateDir, "pods"))
	if err != nil {
		return fmt.Errorf("list writable layers: %w", err)
	}
	for _, e := range entries {
		uid := types.UID(e.Name())
		if r.pods.get(uid) != nil {
			continue
		}
		if err := os.RemoveAll(r.scratchDir(uid)); err != nil {
			return fmt.Errorf("remove old writable layers: %w", err)
		}
	}
	return nil
}

// wakes hands on UIDs without ever blocking or losing one: a set in the middle.
type wakes struct {
	mu   sync.Mutex
	set  map[types.UID]bool
	list []types.UID
	more chan struct{}
	out  chan types.UID
}

func newWakes() *wakes {
	return &wakes{set: map[types.UID]bool{}, more: make(chan struct{}, 1), out: make(chan types.UID)}
}

func (w *wakes) add(uid types.UID) {
	if uid == "" {
		return
	}
	w.mu.Lock()
	if !w.set[uid] {
		w.set[uid] = true
		w.list = append(w.list, uid)
	}
	w.mu.Unlock()
	select {
	case w.more <- struct{}{}:
	default:
	}
}

func (w *wakes) take() (types.UID, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.list) == 0 {
		return "", false
	}
	uid := w.list[0]
	w.list = w.list[1:]
	delete(w.set, uid)
	return uid, true
}

func (w *wakes) run(ctx context.Context) {
	for {
		uid, ok := w.take()
		if !ok {
			select {
			case <-w.more:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case w.out <- uid:
		case <-ctx.Done():
			return
		}
	}
}
