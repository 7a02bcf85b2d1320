package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// get asks a URL. Each answer comes over a connection of its own, so that a
// Service may choose anew.
func get(args []string) error {
	f := flags("get")
	retry := f.Duration("retry", 0, "try again for so long where nobody answers")
	count := f.Int("count", 1, "ask so often")
	timeout := f.Duration("timeout", 5*time.Second, "for one answer")
	rest := parse(f, args)
	if len(rest) != 1 {
		return errors.New("one URL is needed")
	}
	client := &http.Client{Timeout: *timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	deadline := time.Now().Add(*retry)
	for range *count {
		for {
			err := ask(client, rest[0])
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return err
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return nil
}

func ask(client *http.Client, url string) error {
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= http.StatusBadRequest {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000)) // best effort: the status says it
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

func sendTCP(args []string) error {
	if len(args) != 2 {
		return errors.New("ADDRESS and TEXT are needed")
	}
	c, err := net.DialTimeout("tcp", args[0], 5*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, args[1]); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	fmt.Print(line)
	return err
}

func sendUDP(args []string) error {
	if len(args) != 2 {
		return errors.New("ADDRESS and TEXT are needed")
	}
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, args[1]); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	if err != nil {
		return err
	}
	fmt.Println(string(buf[:n]))
	return nil
}
