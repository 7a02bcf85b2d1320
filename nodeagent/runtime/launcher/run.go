//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/rundir"
	"gantry.dev/nodeagent/runtime/want"
)

// run becomes the container described by the file want in the working
// directory, which is the directory of the run. The shim has made this process
// the first of a PID namespace, in a mount namespace of its own; network, IPC
// and UTS are the pod's. It returns only if it fails.
func run() error {
	if err := tie(); err != nil {
		return err
	}
	w, err := readWant(rundir.Want)
	if err != nil {
		return fmt.Errorf("read order: %w", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	// Slave and not private: an unmount on the host must not be held up by us.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("detach mount namespace: %w", err)
	}
	root := filepath.Join(dir, rundir.Root)
	if err := mountRoot(root, w); err != nil {
		return fmt.Errorf("mount root filesystem: %w", err)
	}
	dev := filepath.Join(dir, rundir.Dev)
	paths, err := premount(root, dev, w)
	if err != nil {
		return fmt.Errorf("prepare root filesystem: %w", err)
	}
	if w.TerminationMessagePath != "" {
		if err := touch(rundir.Message); err != nil {
			return fmt.Errorf("make termination message: %w", err)
		}
		w.Mounts = append(w.Mounts, want.Mount{
			Type: "bind", Source: filepath.Join(dir, rundir.Message), Destination: w.TerminationMessagePath,
			Options: []string{"bind", "rprivate"},
		})
	}
	p, err := process(root, w)
	if err != nil {
		return err
	}
	config, err := configure(root, w)
	if err != nil {
		return err
	}
	if config.Mounts, err = mounts(root, dev, w); err != nil {
		return err
	}
	var rules []byte
	if wantsFilter(w.Privileged, w.Seccomp) {
		if rules, err = program(w.Cache, config.Capabilities.Bounding); err != nil {
			return fmt.Errorf("make seccomp filter: %w", err)
		}
	}
	return become(config, paths, p, w.TTY, rules)
}

// tie ends us with the shim, so that we do not bring a container into a pod that
// is being buried, and hides us from whoever shares our namespaces.
func tie() error {
	for _, fd := range []int{rundir.FDSync, rundir.FDPeer, rundir.FDReady} {
		unix.CloseOnExec(fd)
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set death signal: %w", err)
	}
	// Has it died before? Our parent is outside of our namespace, so its number
	// does not tell; the pipe does.
	p := []unix.PollFd{{Fd: rundir.FDReady}}
	if _, err := unix.Poll(p, 0); err == nil && p[0].Revents&unix.POLLERR != 0 {
		return errors.New("the shim is gone")
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return err
	}
	if err := f.Chmod(0o666); err != nil { // whatever the umask is
		_ = f.Close()
		return err
	}
	return f.Close()
}

// mountRoot mounts the layers, lowest first, under a fresh writable layer.
func mountRoot(root string, w want.Run) error {
	layers, scratch := w.Layers, w.Scratch
	if len(layers) == 0 {
		return fmt.Errorf("no layers")
	}
	if w.Base != "" {
		layers = append([]string{w.Base}, layers...)
	}
	for _, l := range layers {
		if _, err := os.Stat(l); err != nil {
			return err
		}
	}
	upper, work := rundir.Layer(scratch)
	// An attempt number can come again after a reboot: begin clean.
	for _, d := range []string{upper, work} {
		if _, err := os.Lstat(d); err == nil {
			if err := os.RemoveAll(d); err != nil {
				return err
			}
		}
	}
	if err := os.MkdirAll(upper, 0o755); err != nil {
		return err
	}
	for _, d := range []string{work, root} {
		if err := os.Mkdir(d, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	lower, err := lowerDirs(layers)
	if err != nil {
		return err
	}
	// volatile: this layer is thrown away with the run, so nobody gains from
	// its fsyncs, and the unmount need not write the whole filesystem back.
	// Kernels before 5.10 do not know it.
	options := "lowerdir=" + lower + ",upperdir=" + escape(upper) + ",workdir=" + escape(work)
	err = unix.Mount("overlay", root, "overlay", 0, options+",volatile")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("overlay", root, "overlay", 0, options)
	}
	if err != nil {
		return fmt.Errorf("overlay of %d layers: %w", len(layers), err)
	}
	return nil
}

// lowerDirs is the value of lowerdir, topmost first. The kernel takes one page
// of options, so many layers go through short links in the working directory.
func lowerDirs(layers []string) (string, error) {
	names := make([]string, 0, len(layers))
	length := 0
	for i := len(layers) - 1; i >= 0; i-- {
		n := escape(layers[i])
		names = append(names, n)
		length += len(n) + 1
	}
	if length <= 3000 {
		return strings.Join(names, ":"), nil
	}
	for i := range names {
		link := "l" + strconv.Itoa(i)
		if err := os.Symlink(layers[len(layers)-1-i], link); err != nil && !os.IsExist(err) {
			return "", err
		}
		names[i] = link
	}
	return strings.Join(names, ":"), nil
}

// escape protects what has a meaning in the options of an overlay.
func escape(path string) string {
	if !strings.ContainsAny(path, `:,\`) {
		return path
	}
	return strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(path)
}
