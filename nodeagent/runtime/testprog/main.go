// Command testprog is all that is in the containers of the runtime's tests. Its
// arguments are a list of verbs with their values, done one after the other.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	args := os.Args[1:]
	next := func() string {
		if len(args) == 0 {
			fmt.Fprintln(os.Stderr, "testprog: value missing")
			os.Exit(2)
		}
		a := args[0]
		args = args[1:]
		return a
	}
	number := func() int {
		n, err := strconv.Atoi(next())
		check(err)
		return n
	}
	for len(args) > 0 {
		switch verb := next(); verb {
		case "sleep": // milliseconds; 0 for ever
			if n := number(); n > 0 {
				time.Sleep(time.Duration(n) * time.Millisecond)
			} else {
				for {
					time.Sleep(time.Hour)
				}
			}
		case "exit":
			os.Exit(number())
		case "term": // waits for SIGTERM
			c := make(chan os.Signal, 1)
			signal.Notify(c, syscall.SIGTERM)
			fmt.Println("ready")
			<-c
			fmt.Println("terminated")
		case "kill": // itself, as far as PID 1 can
			check(syscall.Kill(os.Getpid(), syscall.Signal(number())))
		case "out":
			fmt.Println(next())
		case "raw": // no line break
			fmt.Print(next())
		case "err":
			fmt.Fprintln(os.Stderr, next())
		case "lines":
			for i := range number() {
				fmt.Println("line", i)
			}
		case "ticks": // a line every millisecond
			for i := range number() {
				fmt.Println("tick", i)
				time.Sleep(time.Millisecond)
			}
		case "long":
			fmt.Println(strings.Repeat("x", number()))
		case "eat": // MiB
			var keep [][]byte
			for range number() {
				b := make([]byte, 1<<20)
				for i := 0; i < len(b); i += 4096 {
					b[i] = 1
				}
				keep = append(keep, b)
			}
			fmt.Println("ate", len(keep))
		case "id":
			groups, err := syscall.Getgroups()
			check(err)
			fmt.Println("id", syscall.Getuid(), syscall.Getgid(), groups)
		case "cwd":
			d, err := os.Getwd()
			check(err)
			fmt.Println("cwd", d)
		case "env":
			fmt.Println("env", os.Getenv(next()))
		case "hostname":
			h, err := os.Hostname()
			check(err)
			fmt.Println("hostname", h)
		case "status": // one field of /proc/self/status
			key := next()
			b, err := os.ReadFile("/proc/self/status")
			check(err)
			for line := range strings.Lines(string(b)) {
				if v, ok := strings.CutPrefix(line, key+":"); ok {
					fmt.Println(key, strings.TrimSpace(v))
				}
			}
		case "cat":
			b, err := os.ReadFile(next())
			if err != nil {
				fmt.Println("cat:", err)
			} else {
				fmt.Print(string(b))
			}
		case "write": // path text
			path := next()
			if err := os.WriteFile(path, []byte(next()), 0o644); err != nil {
				fmt.Println("write:", err)
			} else {
				fmt.Println("wrote", path)
			}
		case "ls":
			entries, err := os.ReadDir(next())
			check(err)
			for _, e := range entries {
				fmt.Println("entry", e.Name())
			}
		case "unshare":
			fmt.Println("unshare:", syscall.Unshare(syscall.CLONE_NEWUSER))
		case "keyctl":
			_, _, e := syscall.Syscall6(250, 0, 0, 0, 0, 0, 0)
			fmt.Println("keyctl:", e)
		case "newcall": // a system call that no kernel has yet
			_, _, e := syscall.Syscall(4000, 0, 0, 0)
			fmt.Println("newcall:", e)
		case "fds": // open descriptors
			entries, err := os.ReadDir("/proc/self/fd")
			check(err)
			for _, e := range entries {
				to, err := os.Readlink("/proc/self/fd/" + e.Name())
				if err == nil {
					fmt.Println("fd", e.Name(), to)
				}
			}
		case "mounts":
			b, err := os.ReadFile("/proc/self/mounts")
			check(err)
			fmt.Print(string(b))
		case "forks": // children that sleep; says how many there can be
			n := 0
			for range number() {
				p, err := os.StartProcess("/testprog", []string{"testprog", "sleep", "0"}, &os.ProcAttr{})
				if err != nil {
					break
				}
				_ = p.Release()
				n++
			}
			fmt.Println("forked", n)
		case "listen": // answers every connection, for ever
			l, err := net.Listen("tcp", next())
			check(err)
			fmt.Println("listening")
			go func() {
				for {
					c, err := l.Accept()
					check(err)
					_, _ = io.WriteString(c, "hello from "+os.Getenv("NAME"))
					_ = c.Close()
				}
			}()
		case "dial": // tries until it works
			addr := next()
			for {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					time.Sleep(5 * time.Millisecond)
					continue
				}
				b, _ := io.ReadAll(c)
				fmt.Println(string(b))
				break
			}
		case "shmput": // System V shared memory
			id, _, e := syscall.Syscall(syscall.SYS_SHMGET, 4711, 4096, 0o1666)
			if e != 0 {
				check(e)
			}
			at, _, e := syscall.Syscall(syscall.SYS_SHMAT, id, 0, 0)
			if e != 0 {
				check(e)
			}
			*(*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&at))) = byte(number())
			fmt.Println("put")
		case "shmget": // tries until it is there
			for {
				id, _, e := syscall.Syscall(syscall.SYS_SHMGET, 4711, 4096, 0)
				if e != 0 {
					time.Sleep(5 * time.Millisecond)
					continue
				}
				at, _, e := syscall.Syscall(syscall.SYS_SHMAT, id, 0, 0)
				if e != 0 {
					check(e)
				}
				fmt.Println("got", *(*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&at))))
				break
			}
		case "echo": // standard input to standard output until its end
			_, err := io.Copy(os.Stdout, os.Stdin)
			check(err)
			fmt.Println("end of input")
		case "tty": // which standard descriptors are a terminal, and its size
			for fd := range 3 {
				size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
				if err != nil {
					fmt.Println("no tty", fd)
					continue
				}
				fmt.Println("tty", fd, size.Col, size.Row)
			}
		case "winch": // says every new size of the terminal, for ever
			c := make(chan os.Signal, 1)
			signal.Notify(c, syscall.SIGWINCH)
			fmt.Println("watching")
			go func() {
				for range c {
					size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
					check(err)
					fmt.Println("size", size.Col, size.Row)
				}
			}()
		case "spawn": // a child that sleeps for ever and has our descriptors
			p, err := os.StartProcess("/testprog", []string{"testprog", "sleep", "0"}, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
			check(err)
			fmt.Println("spawned")
			check(p.Release())
		case "flood": // bytes
			b := []byte(strings.Repeat("0123456789abcdef", 4096))
			for n := number(); n > 0; n -= len(b) {
				_, err := os.Stdout.Write(b[:min(n, len(b))])
				check(err)
			}
		case "mark": // appends one byte: how often was this run?
			f, err := os.OpenFile(next(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
			check(err)
			_, err = f.Write([]byte("x"))
			check(err)
			check(f.Close())
		default:
			fmt.Fprintln(os.Stderr, "testprog: unknown verb", verb)
			os.Exit(2)
		}
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "testprog:", err)
		os.Exit(1)
	}
}
