//go:build linux

package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/configs"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/rundir"
)

// The seccomp filter is the same for all containers with the same capabilities,
// and compiling it took more time than all else that a start needs. So it is
// compiled once per boot and kept as a file; and because libcontainer knows no
// ready-made filter, a second thread of the container's first process puts it
// onto all threads of that process (attend), at the moment when the first thread
// has nothing more to do than to execute the command.

// instruction is a classic BPF instruction as the kernel takes it.
type instruction = unix.SockFilter

const instructionBytes = 8

// program returns the filter for a container with these capabilities.
func program(cache string, caps []string) ([]byte, error) {
	path := filepath.Join(cache, filterKey(caps))
	if b, err := os.ReadFile(path); err == nil && len(b) > 0 && len(b)%instructionBytes == 0 {
		return b, nil
	}
	config, err := filter(caps)
	if err != nil {
		return nil, err
	}
	b, err := compile(config)
	if err != nil {
		return nil, err
	}
	// Kept or not, this container starts; the next one tries again.
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if os.WriteFile(tmp, b, 0o600) != nil || os.Rename(tmp, path) != nil {
		_ = os.Remove(tmp)
	}
	return b, nil
}

// filterKey holds all that the filter depends on: capabilities, kernel, and the
// profile and compiler in this binary, which the name of its memory file tells.
func filterKey(caps []string) string {
	caps = slices.Sorted(slices.Values(caps))
	exe, _ := os.Readlink("/proc/self/exe")
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	sum := sha256.Sum256([]byte(strings.Join(caps, " ") + "\n" + exe + "\n" + string(uts.Release[:])))
	return hex.EncodeToString(sum[:16])
}

// compile makes of a configuration what libcontainer would load.
func compile(config *configs.Seccomp) ([]byte, error) {
	standard, err := action(config.DefaultAction, config.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	f, err := libseccomp.NewFilter(standard)
	if err != nil {
		return nil, err
	}
	defer f.Release()
	if err := f.SetNoNewPrivsBit(false); err != nil {
		return nil, err
	}
	var archs []libseccomp.ScmpArch
	for _, name := range config.Architectures {
		a, err := libseccomp.GetArchFromString(name)
		if err != nil {
			return nil, err
		}
		if err := f.AddArch(a); err != nil {
			return nil, err
		}
		archs = append(archs, a)
	}
	_ = f.SetOptimize(2) // a tree instead of a list, where the library knows it
	for _, call := range config.Syscalls {
		if err := addRule(f, call, standard); err != nil {
			return nil, fmt.Errorf("rule for %s: %w", call.Name, err)
		}
	}
	body, err := export(f)
	if err != nil {
		return nil, err
	}
	return append(unknownCalls(config, archs), body...), nil
}

func action(a configs.Action, errno *uint) (libseccomp.ScmpAction, error) {
	switch a {
	case configs.Allow:
		return libseccomp.ActAllow, nil
	case configs.Errno:
		code := uint(unix.EPERM)
		if errno != nil {
			code = *errno
		}
		return libseccomp.ActErrno.SetReturnCode(int16(code)), nil
	}
	return libseccomp.ActInvalid, fmt.Errorf("action %d is not in the default profile", a)
}

var operators = map[configs.Operator]libseccomp.ScmpCompareOp{
	configs.EqualTo: libseccomp.CompareEqual, configs.NotEqualTo: libseccomp.CompareNotEqual,
	configs.GreaterThan: libseccomp.CompareGreater, configs.GreaterThanOrEqualTo: libseccomp.CompareGreaterEqual,
	configs.LessThan: libseccomp.CompareLess, configs.LessThanOrEqualTo: libseccomp.CompareLessOrEqual,
	configs.MaskEqualTo: libseccomp.CompareMaskedEqual,
}

func addRule(f *libseccomp.ScmpFilter, call *configs.Syscall, standard libseccomp.ScmpAction) error {
	act, err := action(call.Action, call.ErrnoRet)
	if err != nil || act == standard {
		return err
	}
	nr, err := libseccomp.GetSyscallFromName(call.Name)
	if err != nil {
		return nil // not known to this library: caught by unknownCalls
	}
	if len(call.Args) == 0 {
		return f.AddRule(nr, act)
	}
	var all []libseccomp.ScmpCondition
	seen, twice := map[uint]bool{}, false
	for _, a := range call.Args {
		c, err := libseccomp.MakeCondition(a.Index, operators[a.Op], a.Value, a.ValueTwo)
		if err != nil {
			return err
		}
		all = append(all, c)
		twice = twice || seen[a.Index]
		seen[a.Index] = true
	}
	if !twice {
		return f.AddRuleConditional(nr, act, all)
	}
	// Several conditions on one argument mean "or" in these profiles.
	for _, c := range all {
		if err := f.AddRuleConditional(nr, act, []libseccomp.ScmpCondition{c}); err != nil {
			return err
		}
	}
	return nil
}

func export(f *libseccomp.ScmpFilter) ([]byte, error) {
	fd, err := unix.MemfdCreate("filter", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "filter")
	defer func() { _ = file.Close() }()
	if err := f.ExportBPF(file); err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, st.Size())
	_, err = file.ReadAt(b, 0)
	return b, err
}

// unknownCalls is a prelude that answers ENOSYS to calls that are newer than
// the profile. The default, EPERM, makes C libraries give up where they would
// otherwise fall back to an older call.
func unknownCalls(config *configs.Seccomp, archs []libseccomp.ScmpArch) []byte {
	const (
		loadNr, loadArch = 0, 4
		opLoad           = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		opEqual          = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		opGreater        = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
		opAtLeast        = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		opReturn         = unix.BPF_RET | unix.BPF_K
		enosys           = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
		x32Bit           = 0x40000000
	)
	last := func(a libseccomp.ScmpArch) uint32 {
		most := libseccomp.ScmpSyscall(0)
		for _, call := range config.Syscalls {
			if nr, err := libseccomp.GetSyscallFromNameByArch(call.Name, a); err == nil {
				most = max(most, nr)
			}
		}
		return uint32(most)
	}
	var out []instruction
	block := func(audit uint32, body ...instruction) {
		body = append([]instruction{{Code: opLoad, K: loadNr}}, body...)
		out = append(out, instruction{Code: opLoad, K: loadArch}, instruction{Code: opEqual, Jf: uint8(len(body)), K: audit})
		out = append(out, body...)
	}
	refuseAbove := func(nr uint32) []instruction {
		return []instruction{{Code: opGreater, Jf: 1, K: nr}, {Code: opReturn, K: enosys}}
	}
	for _, a := range archs {
		switch a {
		case libseccomp.ArchAMD64:
			// The same audit value serves x32, told apart by a bit. -1 is what a
			// tracer leaves there to skip a call: never refuse that one.
			body := []instruction{{Code: opAtLeast, Jt: 2, K: x32Bit}}
			block(unix.AUDIT_ARCH_X86_64, append(body, refuseAbove(last(a))...)...)
		case libseccomp.ArchX86:
			block(unix.AUDIT_ARCH_I386, refuseAbove(last(a))...)
		case libseccomp.ArchARM64:
			block(unix.AUDIT_ARCH_AARCH64, refuseAbove(last(a))...)
		case libseccomp.ArchARM:
			// Private calls of this architecture (set_tls...) lie far above.
			block(unix.AUDIT_ARCH_ARM, append([]instruction{{Code: opAtLeast, Jt: 2, K: 0x0f0000}}, refuseAbove(last(a))...)...)
		}
	}
	var b []byte
	for _, i := range out {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}

// attend starts the thread that does what is left to do when libcontainer waits
// at the gate: it installs the filter, if there is one, and tells the shim. The
// descriptor that it returns is libcontainer's for its log, which is closed right
// before the gate. It must be called before anything is given up.
func attend(rules []byte) (int, error) {
	var log [2]int
	if err := unix.Pipe2(log[:], unix.O_CLOEXEC); err != nil {
		return -1, err
	}
	words, err := unix.FcntlInt(rundir.FDSync, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		// To install a filter for others this thread needs its capabilities; the
		// change of user, which concerns all threads, would take them.
		started <- unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
		var buf [1 << 10]byte
		for {
			if n, err := unix.Read(log[0], buf[:]); n <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if same(rundir.FDSync, words) {
			select {} // it has failed and is about to say so, if it has not yet, and to end
		}
		if len(rules) > 0 {
			if err := install(rules); err != nil {
				os.Exit(fail(words, fmt.Errorf("confine process: %w", err)))
			}
		}
		_, _ = unix.Write(rundir.FDReady, []byte{1})
		select {} // until the command is executed
	}()
	return log[1], <-started
}

// same tells whether both descriptors are of one file. On its way to the gate
// libcontainer has closed its socket before its log; when it fails, it closes it
// later, after it has said why, so the shim looks for that once more.
func same(a, b int) bool {
	var s, t unix.Stat_t
	return unix.Fstat(a, &s) == nil && unix.Fstat(b, &t) == nil && s.Ino == t.Ino && s.Dev == t.Dev
}

// fdFilter is where a command that joins a container finds the filter: the first
// descriptor that libcontainer passes on.
const fdFilter = 3

// filterPassed tells whether a descriptor of ours was passed on: the next one
// then is that of the terminal's socket, if there is to be one, or the pipe.
func filterPassed() bool {
	next := "_LIBCONTAINER_INITPIPE"
	if os.Getenv("_LIBCONTAINER_CONSOLE") != "" {
		next = "_LIBCONTAINER_CONSOLE"
	}
	return os.Getenv(next) == strconv.Itoa(fdFilter+1)
}

// guardJoined puts the filter onto a command that joins a container. Nothing
// there waits for anyone before the command is executed, so it is done at the
// very beginning: what is left to do until then is what containers may do.
func guardJoined() {
	if !filterPassed() {
		return
	}
	unix.CloseOnExec(fdFilter)
	b := make([]byte, 64<<10)
	n, err := unix.Pread(fdFilter, b, 0)
	if err == nil {
		err = install(b[:n])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "confine command:", err)
		os.Exit(1)
	}
}

// install puts the filter onto every thread of this process.
func install(b []byte) error {
	if len(b) == 0 || len(b)%instructionBytes != 0 {
		return errors.New("filter is cut off")
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for i := range data {
		data[i].Effective = data[i].Permitted
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("raise capabilities: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(b) / instructionBytes), Filter: (*instruction)(unsafe.Pointer(&b[0]))}
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	r, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(b)
	if e != 0 {
		return fmt.Errorf("install filter: %w", e)
	}
	if r != 0 {
		return fmt.Errorf("install filter: thread %d has another one", r)
	}
	return nil
}

// wantsFilter tells whether a container is to be confined.
func wantsFilter(privileged bool, seccomp string) bool {
	return !privileged && seccomp != "Unconfined"
}
