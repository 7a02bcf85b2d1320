package admission

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"gantry.dev/bus"
	"gantry.dev/schemas"
)

// clusterIPs is the kind of reservation of Services' addresses.
const clusterIPs = "clusterip"

// reservationSettles is how long a reservation may be ahead of its Service:
// the time in which a create is under way. An older one without Service leaked.
const reservationSettles = time.Minute

// addresses gives each Service an address of its own. The reservations bucket
// decides, not the view: two replicas may pick the same address at once.
type addresses struct {
	reservations Reservations
	cidr         netip.Prefix
	view         func() bus.View
	now          func() time.Time
}

// inRange refuses an address that a Service asks for and that is none of ours.
func (a *addresses) inRange(svc *corev1.Service) error {
	want := svc.Spec.ClusterIP
	if ip, err := netip.ParseAddr(want); err == nil && a.usable(ip) {
		return nil
	}
	return invalidObject(schemas.KindOf(svc), svc.Name, field.ErrorList{field.Invalid(field.NewPath("spec", "clusterIP"), want,
		fmt.Sprintf("failed to allocate IP %s: the provided IP is not in the valid range; the range of valid IPs is %s without its first, second and last address", want, a.cidr))})
}

// check says what assign would refuse, as far as can be told without
// reserving. A Service that asks for none is left without an address.
func (a *addresses) check(svc *corev1.Service) error {
	want := svc.Spec.ClusterIP
	if want == "" {
		return nil
	}
	if err := a.inRange(svc); err != nil {
		return err
	}
	for _, o := range a.view().List(schemas.Services, "") {
		if other, ok := o.(*corev1.Service); ok && other.Spec.ClusterIP == want {
			return invalidObject(schemas.KindOf(svc), svc.Name, field.ErrorList{field.Invalid(field.NewPath("spec", "clusterIP"), want,
				fmt.Sprintf("failed to allocate IP %s: provided IP is already allocated to %s", want, schemas.KeyOf(o)))})
		}
	}
	return nil
}

// assign reserves the Service's address: the one that it asks for, or a free one.
func (a *addresses) assign(ctx context.Context, svc *corev1.Service) error {
	kind := schemas.KindOf(svc)
	at := field.NewPath("spec", "clusterIP")
	holder := schemas.Reservation{Key: schemas.KeyOf(svc), UID: svc.UID}
	if want := svc.Spec.ClusterIP; want != "" {
		if err := a.inRange(svc); err != nil {
			return err
		}
		taken, err := a.take(ctx, want, holder)
		if err == nil && taken != "" {
			err = invalidObject(kind, svc.Name, field.ErrorList{field.Invalid(at, want,
				fmt.Sprintf("failed to allocate IP %s: provided IP is already allocated to %s", want, taken))})
		}
		return err
	}
	used := map[string]bool{}
	for _, o := range a.view().List(schemas.Services, "") {
		used[o.(*corev1.Service).Spec.ClusterIP] = true
	}
	// A random start keeps an address that was just freed from being given out
	// again at once, while somebody may still hold it in a connection.
	for ip := range a.from(rand.N(a.size())) {
		s := ip.String()
		if used[s] {
			continue
		}
		taken, err := a.take(ctx, s, holder)
		if err != nil {
			return err
		}
		if taken == "" {
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = s, []string{s}
			return nil
		}
	}
	return forbidden(kind, svc.Name, "failed to allocate a cluster IP: the range %s is full; delete a Service, or start the cluster with a larger range", a.cidr)
}

// take reserves one address and returns the key of who has it instead, if so.
// A reservation that outlived its Service is taken over.
func (a *addresses) take(ctx context.Context, ip string, r schemas.Reservation) (taken string, err error) {
	for range 2 {
		held, err := a.reservations.Reserve(ctx, clusterIPs, ip, r)
		switch {
		case err == nil:
			return "", nil
		case !errors.Is(err, bus.ErrExists):
			return "", fmt.Errorf("reserve cluster IP %s: %w", ip, err)
		case !a.leaked(held):
			return held.Key, nil
		}
		if err := a.reservations.Release(ctx, clusterIPs, ip, held.Reservation); err != nil {
			return "", fmt.Errorf("reclaim cluster IP %s: %w", ip, err)
		}
	}
	return "another Service", nil
}

// leaked says that no Service answers for a reservation, and none will.
func (a *addresses) leaked(held bus.Held) bool {
	if a.now().Sub(held.Since) < reservationSettles {
		return false
	}
	_, namespace, name, err := schemas.ParseObjectKey(held.Key)
	if err != nil {
		return true
	}
	o := a.view().Get(schemas.Services, namespace, name)
	return o == nil || o.GetUID() != held.UID
}

// release gives a Service's address back.
func (a *addresses) release(ctx context.Context, svc *corev1.Service) error {
	ip := svc.Spec.ClusterIP
	if ip == "" || ip == corev1.ClusterIPNone {
		return nil
	}
	return a.reservations.Release(ctx, clusterIPs, ip, schemas.Reservation{Key: schemas.KeyOf(svc), UID: svc.UID})
}

// reclaim gives back what leaked, and reserves what the stored Services have:
// a restored bucket of objects may know more than the reservations do.
func (a *addresses) reclaim(ctx context.Context) error {
	held, err := a.reservations.Reserved(ctx, clusterIPs)
	if err != nil {
		return err
	}
	reserved := map[string]schemas.Reservation{}
	for _, h := range held {
		if !a.leaked(h) {
			reserved[h.Value] = h.Reservation
			continue
		}
		if err := a.reservations.Release(ctx, clusterIPs, h.Value, h.Reservation); err != nil {
			return err
		}
	}
	for _, o := range a.view().List(schemas.Services, "") {
		svc := o.(*corev1.Service)
		r := schemas.Reservation{Key: schemas.KeyOf(svc), UID: svc.UID}
		if ip := svc.Spec.ClusterIP; ip != "" && ip != corev1.ClusterIPNone && reserved[ip] != r {
			if _, err := a.reservations.Reserve(ctx, clusterIPs, ip, r); err != nil && !errors.Is(err, bus.ErrExists) {
				return err
			}
		}
	}
	return nil
}

// size is the number of addresses in the range, bounded for what is huge.
func (a *addresses) size() int64 {
	return 1 << min(a.cidr.Addr().BitLen()-a.cidr.Bits(), 24)
}

// usable addresses are within the range, without the network's own, the first
// (Kubernetes keeps it for the API) and the last.
func (a *addresses) usable(ip netip.Addr) bool {
	first := a.cidr.Masked().Addr()
	return a.cidr.Contains(ip) && ip != first && ip != first.Next() && a.cidr.Contains(ip.Next())
}

// from yields every usable address once, beginning at an offset.
func (a *addresses) from(offset int64) func(yield func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		first := a.cidr.Masked().Addr()
		n := a.size()
		for i := range n {
			ip := plus(first, (offset+i)%n)
			if a.usable(ip) && !yield(ip) {
				return
			}
		}
	}
}

func plus(ip netip.Addr, n int64) netip.Addr {
	sum := new(big.Int).Add(new(big.Int).SetBytes(ip.AsSlice()), big.NewInt(n))
	out, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, len(ip.AsSlice()))))
	return out
}
