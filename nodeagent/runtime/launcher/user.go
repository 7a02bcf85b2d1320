//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"gantry.dev/nodeagent/runtime/want"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// process is the command with its user looked up in the container's root.
func process(root string, w want.Run) (*libcontainer.Process, error) {
	if len(w.Args) == 0 || w.Args[0] == "" {
		return nil, because(want.CommandNotFound, errors.New("no command given by the image or the pod"))
	}
	p := &libcontainer.Process{
		Args: w.Args, Env: w.Env, Cwd: w.Cwd,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	hasPath := false
	for _, e := range p.Env {
		hasPath = hasPath || strings.HasPrefix(e, "PATH=")
	}
	if !hasPath {
		p.Env = append(p.Env, defaultPath)
	}
	u, err := lookUp(root, w.User)
	if err != nil {
		return nil, because(want.InvalidUser, fmt.Errorf("user %q: %w", w.User, err))
	}
	p.UID, p.GID, p.AdditionalGroups = u.Uid, u.Gid, u.Sgids
	for _, g := range w.AdditionalGroups {
		p.AdditionalGroups = append(p.AdditionalGroups, int(g))
	}
	return p, nil
}

func lookUp(root, spec string) (*user.ExecUser, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(dir) }()
	passwd, err := readIn(dir, "etc/passwd")
	if err != nil {
		return nil, err
	}
	group, err := readIn(dir, "etc/group")
	if err != nil {
		return nil, err
	}
	return user.GetExecUser(spec, &user.ExecUser{}, passwd, group)
}

// readIn reads a file of the image. The image may have made it a link to
// anywhere: the kernel resolves it as if root were /. Missing is empty.
func readIn(dir int, path string) (io.Reader, error) {
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return bytes.NewReader(nil), nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/" + path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("/%s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 8<<20))
	if err != nil {
		return nil, err
	}
	return bytes.NewReader(b), nil
}
