//go:build linux

package main

import (
	"os/exec"
	"syscall"
	"testing"
)

// TestWhatWasWaitedForIsNotKilled: the number of a command that has ended is
// another process's sooner or later. Here it is the same one, which has not been
// waited for, so that nobody else can come to harm.
func TestWhatWasWaitedForIsNotKilled(t *testing.T) {
	begin := func() (*exec.Cmd, *leader) {
		cmd := exec.Command("cat")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, &leader{pid: cmd.Process.Pid}
	}
	signal := func(cmd *exec.Cmd) syscall.Signal {
		_ = cmd.Wait() // how it ended is asked below
		return cmd.ProcessState.Sys().(syscall.WaitStatus).Signal()
	}
	cmd, command := begin()
	command.kill()
	command.await()
	if got := signal(cmd); got != syscall.SIGKILL {
		t.Errorf("killed while it ran: ended by signal %v", got)
	}

	cmd, command = begin()
	command.ended = true
	command.kill()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := signal(cmd); got != syscall.SIGTERM {
		t.Errorf("killed after its end: ended by signal %v, want the other one", got)
	}
}
