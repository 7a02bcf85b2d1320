package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"gantry.dev/bus"
	"gantry.dev/controlplane/plane"
	"gantry.dev/schemas"
)

// TestFullDiskEndsTheControlPlane: it once went on, left every write without an
// answer, and stored nothing more when there was space again.
func TestFullDiskEndsTheControlPlane(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("mounts a small disk: run as root (CI does)")
	}
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	start := func() (*plane.Plane, *bus.UserConn) {
		t.Helper()
		p, err := plane.Start(ctx, plane.Options{
			StateDir: filepath.Join(disk, "state"), Listen: "127.0.0.1:0", Nodes: []string{"n1"},
			PodCIDR: "10.42.0.0/16", ServiceCIDR: "10.96.0.0/16", Log: zerolog.Nop(),
		})
		if err != nil {
			t.Fatal(err)
		}
		creds, err := bus.ReadUserCredentials(p.AdminCredentials())
		if err != nil {
			t.Fatal(err)
		}
		u, err := bus.ConnectUser(ctx, creds)
		if err != nil {
			t.Fatal(err)
		}
		return p, u
	}
	p, u := start()
	var written int
	write := func(u *bus.UserConn) error {
		name := fmt.Sprintf("c-%d", written)
		body := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q},"data":{"a":%q}}`, name, strings.Repeat("x", 500<<10))
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := u.Request(short, schemas.VerbCreate, schemas.ConfigMaps, "default", name, []byte(body))
		if err == nil {
			written++
		}
		return err
	}
	filler := filepath.Join(disk, "filler")
	var space syscall.Statfs_t
	if err := syscall.Statfs(disk, &space); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(space.Bavail)*space.Bsize-4<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for write(u) == nil {
	}
	select {
	case err := <-p.Failed():
		if !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), disk) {
			t.Errorf("it ends, and says %v", err)
		}
	case <-ctx.Done():
		t.Fatal("it goes on")
	}
	u.Close()
	_ = p.Stop(ctx) // on a full disk it may fail
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}

	stored := written
	p, u = start()
	defer func() {
		u.Close()
		if err := p.Stop(ctx); err != nil {
			t.Error(err)
		}
	}()
	reply, err := u.Request(ctx, schemas.VerbList, schemas.ConfigMaps, "default", "", []byte(`{"limit":1}`))
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Metadata struct{ RemainingItemCount int }
	}
	if err := json.Unmarshal(reply.Body, &list); err != nil {
		t.Fatal(err)
	}
	// One that was not answered may have been stored.
	if got := list.Metadata.RemainingItemCount + 1; got != stored && got != stored+1 {
		t.Errorf("%d objects are there, %d were acknowledged", got, stored)
	}
	written += 1000 // names that nobody tried
	if err := write(u); err != nil {
		t.Errorf("with space again: %v", err)
	}
}
