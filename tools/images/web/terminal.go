package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unsafe"
)

// terminal prints the size of its terminal, and again each time it changes,
// until it reads a line "end".
func terminal([]string) error {
	size, err := terminalSize()
	if err != nil {
		return fmt.Errorf("standard input is no terminal: %w", err)
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	fmt.Printf("terminal %s\n", size)
	ended := make(chan error, 1)
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			if strings.TrimSpace(in.Text()) == "end" {
				ended <- nil
				return
			}
			fmt.Printf("heard %q\n", in.Text())
		}
		ended <- errors.Join(in.Err(), errors.New("the terminal was closed"))
	}()
	for {
		select {
		case err := <-ended:
			return err
		case <-changed:
			now, err := terminalSize()
			if err != nil {
				return err
			}
			if now != size {
				fmt.Printf("terminal %s\n", now)
				size = now
			}
		}
	}
}

func terminalSize() (string, error) {
	var size struct{ rows, columns, x, y uint16 }
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, os.Stdin.Fd(), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return "", errno
	}
	return fmt.Sprintf("%dx%d", size.columns, size.rows), nil
}
