package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

type server struct {
	name    string
	ready   atomic.Bool
	started time.Time
	asked   atomic.Int64
}

// podName is what the server tells: that of the pod where it was told, else
// that of the host.
func podName() string {
	if n := os.Getenv("POD_NAME"); n != "" {
		return n
	}
	n, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return n
}

func serve(args []string) error {
	f := flags("serve")
	listen := f.String("listen", ":8080", "address of the web server")
	tcpEcho := f.String("tcp-echo", "", "address of a TCP server that sends lines back after the pod's name")
	udpEcho := f.String("udp-echo", "", "address of a UDP server that does the same with datagrams")
	readyDelay := f.Duration("ready-delay", 0, "how long /healthz answers 503 at first")
	crash := f.Duration("crash", 0, "end with code 1 after so long")
	burners := f.Int("burn", 0, "keep so many cores busy")
	drain := f.Duration("drain", 0, "after TERM, go on for so long while not ready")
	if rest := parse(f, args); len(rest) > 0 {
		return fmt.Errorf("unexpected %q", rest)
	}
	s := &server{name: podName(), started: time.Now()}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	failed := make(chan error, 3)
	for range *burners {
		go spin(nil)
	}
	if *crash > 0 {
		time.AfterFunc(*crash, func() {
			fmt.Fprintln(os.Stderr, "crashing, as asked")
			os.Exit(1)
		})
	}
	time.AfterFunc(*readyDelay, func() { s.ready.Store(true) })
	if *tcpEcho != "" {
		l, err := net.Listen("tcp", *tcpEcho)
		if err != nil {
			return err
		}
		go func() { failed <- s.echoTCP(l) }()
	}
	if *udpEcho != "" {
		c, err := net.ListenPacket("udp", *udpEcho)
		if err != nil {
			return err
		}
		go func() { failed <- s.echoUDP(c) }()
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	web := &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second}
	go func() { failed <- web.Serve(l) }()
	fmt.Printf("%s serves on %s\n", s.name, l.Addr())

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	fmt.Println("TERM: draining")
	s.ready.Store(false)
	time.Sleep(*drain)
	last, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := web.Shutdown(last); err != nil {
		return err
	}
	fmt.Println("bye")
	return nil
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		s.asked.Add(1)
		_, _ = fmt.Fprintln(w, s.name)
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	// /ready?value=false takes the pod out of its Services, and back.
	mux.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) {
		v, err := strconv.ParseBool(r.FormValue("value"))
		if err != nil {
			http.Error(w, "value=true or value=false", http.StatusBadRequest)
			return
		}
		s.ready.Store(v)
		_, _ = fmt.Fprintln(w, v)
	})
	mux.HandleFunc("/whoami", s.whoami)
	mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, os.Getenv("VERSION")) })
	mux.HandleFunc("/env", func(w http.ResponseWriter, _ *http.Request) {
		for _, e := range os.Environ() {
			_, _ = fmt.Fprintln(w, e)
		}
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	mux.HandleFunc("/sleep", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.FormValue("for"))
		if err != nil {
			http.Error(w, "for=DURATION", http.StatusBadRequest)
			return
		}
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
		_, _ = fmt.Fprintln(w, s.name)
	})
	mux.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.FormValue("code"))
		if err != nil {
			code = 1
		}
		_, _ = fmt.Fprintln(w, s.name)
		_ = http.NewResponseController(w).Flush()
		os.Exit(code)
	})
	return mux
}

// whoami tells what a test of networking wants to know: who answers, and whom
// it sees.
func (s *server) whoami(w http.ResponseWriter, r *http.Request) {
	host, err := os.Hostname()
	if err != nil {
		host = err.Error()
	}
	local := ""
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		local = a.String()
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"pod": s.name, "hostname": host, "client": r.RemoteAddr, "server": local, "host": r.Host,
		"pid": os.Getpid(), "uid": os.Getuid(), "gid": os.Getgid(), "asked": s.asked.Load(),
		"uptimeSeconds": time.Since(s.started).Seconds(), "version": os.Getenv("VERSION"),
	})
}

func (s *server) echoTCP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = c.Close() }()
			for in := bufio.NewScanner(c); in.Scan(); {
				if _, err := fmt.Fprintf(c, "%s %s\n", s.name, in.Text()); err != nil {
					return
				}
			}
		}()
	}
}

func (s *server) echoUDP(c net.PacketConn) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		// A client that has gone is no reason to stop.
		_, _ = c.WriteTo(append([]byte(s.name+" "), buf[:n]...), from)
	}
}
