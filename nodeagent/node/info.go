// Package node says what the machine is and has: capacity, what of it pods may
// use, addresses, versions, and whether it is short of anything.
package node

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/nodeagent/image"
)

// Version is what the agent calls itself; the build may set it.
var Version = "dev"

// Options are what the operator says about the node.
type Options struct {
	Node     string
	StateDir string // whose filesystem pods write to
	MaxPods  int64
	// Reserved is kept from pods for the system.
	Reserved corev1.ResourceList
	// IP overrides the address that is found; the zero value does not.
	IP netip.Addr
}

// Pressure limits, as shares of what the machine has.
const (
	// DiskFull is the share of the disk in use above which images are collected.
	DiskFull      = 0.85
	diskPressure  = 0.95
	memoryLeft    = 100 << 20 // bytes
	maxImagesTold = 50
)

// Facts are what the machine says of itself once.
type Facts struct {
	Options
	Capacity    corev1.ResourceList
	Allocatable corev1.ResourceList
	Addresses   []corev1.NodeAddress
	Info        corev1.NodeSystemInfo
	Labels      map[string]string
}

// IP is the address that others reach the node's pods on the host network by;
// empty where there is none.
func (f Facts) IP() string {
	for _, a := range f.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return a.Address
		}
	}
	return ""
}

// Memory is the machine's memory in bytes.
func (f Facts) Memory() int64 {
	q := f.Capacity[corev1.ResourceMemory]
	return q.Value()
}

// Look reads the facts. What cannot be read but is not needed stays empty.
func Look(o Options) (Facts, error) {
	memory, err := memInfo()
	if err != nil {
		return Facts{}, err
	}
	disk, _, err := Disk(o.StateDir)
	if err != nil {
		return Facts{}, err
	}
	f := Facts{Options: o, Info: systemInfo()}
	f.Capacity = corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(memory["MemTotal"], resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(int64(disk), resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(o.MaxPods, resource.DecimalSI),
	}
	f.Allocatable = f.Capacity.DeepCopy()
	for name, reserved := range o.Reserved {
		q, ok := f.Allocatable[name]
		if !ok {
			return Facts{}, fmt.Errorf("reserve %s: the node has no such resource", name)
		}
		q.Sub(reserved)
		if q.Sign() < 0 {
			return Facts{}, fmt.Errorf("reserve %s of %s: the node has only %s", reserved.String(), name, ptr(f.Capacity[name]).String())
		}
		f.Allocatable[name] = q
	}
	ip := o.IP
	if !ip.IsValid() {
		ip = hostIP()
	}
	f.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: ip.String()},
		{Type: corev1.NodeHostName, Address: o.Node},
	}
	f.Labels = map[string]string{
		corev1.LabelHostname:   o.Node,
		corev1.LabelOSStable:   runtime.GOOS,
		corev1.LabelArchStable: runtime.GOARCH,
	}
	return f, nil
}

func ptr[T any](v T) *T { return &v }

// Status is what the node tells of itself now. before are the conditions told
// last, whose transition times stay where nothing changed.
func (f Facts) Status(images []image.Image, before []corev1.NodeCondition, now time.Time) corev1.NodeStatus {
	return corev1.NodeStatus{
		Capacity: f.Capacity, Allocatable: f.Allocatable, Addresses: f.Addresses, NodeInfo: f.Info,
		Phase:      corev1.NodeRunning,
		Conditions: f.conditions(before, now),
		Images:     imagesTold(images),
	}
}

func (f Facts) conditions(before []corev1.NodeCondition, now time.Time) []corev1.NodeCondition {
	memory := condition(corev1.NodeMemoryPressure, false, "KubeletHasSufficientMemory", "the node has sufficient memory available")
	if m, err := memInfo(); err == nil && m["MemAvailable"] < memoryLeft {
		memory = condition(corev1.NodeMemoryPressure, true, "KubeletHasInsufficientMemory", "the node has insufficient memory available")
	}
	disk := condition(corev1.NodeDiskPressure, false, "KubeletHasNoDiskPressure", "the node has no disk pressure")
	if size, used, err := Disk(f.StateDir); err == nil && size > 0 && float64(used)/float64(size) > diskPressure {
		disk = condition(corev1.NodeDiskPressure, true, "KubeletHasDiskPressure", "the node has disk pressure")
	}
	out := []corev1.NodeCondition{
		memory, disk,
		condition(corev1.NodePIDPressure, false, "KubeletHasSufficientPID", "the node has sufficient PID available"),
		condition(corev1.NodeReady, true, "KubeletReady", "the node agent is ready"),
	}
	for i := range out {
		out[i].LastHeartbeatTime = metav1.NewTime(now.UTC().Truncate(time.Second))
		out[i].LastTransitionTime = out[i].LastHeartbeatTime
		j := slices.IndexFunc(before, func(c corev1.NodeCondition) bool { return c.Type == out[i].Type })
		if j >= 0 && before[j].Status == out[i].Status {
			out[i].LastTransitionTime = before[j].LastTransitionTime
		}
	}
	return out
}

func condition(kind corev1.NodeConditionType, is bool, reason, message string) corev1.NodeCondition {
	value := corev1.ConditionFalse
	if is {
		value = corev1.ConditionTrue
	}
	return corev1.NodeCondition{Type: kind, Status: value, Reason: reason, Message: message}
}

// imagesTold are the largest images: what the scheduler can gain by.
func imagesTold(images []image.Image) []corev1.ContainerImage {
	byID := map[string]*corev1.ContainerImage{}
	for _, i := range images {
		c, ok := byID[i.ID]
		if !ok {
			c = &corev1.ContainerImage{SizeBytes: i.Size}
			byID[i.ID] = c
		}
		for _, name := range []string{i.RepoDigest, i.Ref} {
			if name != "" && !slices.Contains(c.Names, name) {
				c.Names = append(c.Names, name)
			}
		}
	}
	var out []corev1.ContainerImage
	for _, c := range byID {
		slices.Sort(c.Names)
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b corev1.ContainerImage) int {
		if a.SizeBytes != b.SizeBytes {
			return int(min(max(b.SizeBytes-a.SizeBytes, -1), 1))
		}
		return slices.Compare(a.Names, b.Names)
	})
	return out[:min(len(out), maxImagesTold)]
}

// Disk is the size of a directory's filesystem and how much of it is in use, in bytes.
func Disk(dir string) (size, used uint64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, 0, fmt.Errorf("read size of %s: %w", dir, err)
	}
	block := uint64(s.Bsize)
	return s.Blocks * block, (s.Blocks - s.Bavail) * block, nil
}

// memInfo is /proc/meminfo in bytes.
func memInfo() (map[string]int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, fmt.Errorf("read memory size: %w", err)
	}
	out := map[string]int64{}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		name, rest, _ := strings.Cut(s.Text(), ":")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		n, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			continue
		}
		if len(fields) > 1 && fields[1] == "kB" {
			n <<= 10
		}
		out[name] = n
	}
	if out["MemTotal"] == 0 {
		return nil, errors.New("read memory size: /proc/meminfo does not say")
	}
	return out, nil
}

func systemInfo() corev1.NodeSystemInfo {
	info := corev1.NodeSystemInfo{
		MachineID:               line("/etc/machine-id"),
		SystemUUID:              line("/sys/class/dmi/id/product_uuid"),
		BootID:                  line("/proc/sys/kernel/random/boot_id"),
		KernelVersion:           line("/proc/sys/kernel/osrelease"),
		OSImage:                 osImage(),
		ContainerRuntimeVersion: "gantry://" + Version,
		KubeletVersion:          Version,
		OperatingSystem:         runtime.GOOS,
		Architecture:            runtime.GOARCH,
	}
	if info.SystemUUID == "" {
		info.SystemUUID = info.MachineID
	}
	return info
}

// line is the first line of a file, empty where it cannot be read.
func line(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(first)
}

func osImage() string {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return runtime.GOOS
	}
	for l := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(l), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"`)
		}
	}
	return runtime.GOOS
}

// hostIP is the address that the machine would use towards the world, or else
// its first that is not loopback, or else loopback.
func hostIP() netip.Addr {
	// A UDP socket is connected without a packet being sent; the address is of
	// a range for documentation.
	if conn, err := net.Dial("udp4", "192.0.2.1:9"); err == nil {
		addr, ok := conn.LocalAddr().(*net.UDPAddr)
		_ = conn.Close() // nothing was sent
		if ok {
			return addr.AddrPort().Addr().Unmap()
		}
	}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() {
				return p.Addr()
			}
		}
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}
