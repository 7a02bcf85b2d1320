package schemas

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
)

// Modes of files that a node writes into a volume.
const projectedFileMode = 0o644

func defaultVolume(v *corev1.Volume) {
	s := &v.VolumeSource
	switch {
	case s.EmptyDir != nil: // the most common, and nothing to fill in
	case s.HostPath != nil:
		orPointer(&s.HostPath.Type, corev1.HostPathUnset)
	case s.Secret != nil:
		orPointer(&s.Secret.DefaultMode, projectedFileMode)
	case s.ConfigMap != nil:
		orPointer(&s.ConfigMap.DefaultMode, projectedFileMode)
	case s.DownwardAPI != nil:
		orPointer(&s.DownwardAPI.DefaultMode, projectedFileMode)
		defaultDownwardFiles(s.DownwardAPI.Items)
	case s.Projected != nil:
		defaultProjected(s.Projected)
	case s.Ephemeral != nil:
		if t := s.Ephemeral.VolumeClaimTemplate; t != nil {
			defaultClaimSpec(&t.Spec)
		}
	case s.Image != nil:
		if s.Image.PullPolicy == "" {
			s.Image.PullPolicy = defaultPullPolicy(s.Image.Reference)
		}
	case s.ISCSI != nil:
		orDefault(&s.ISCSI.ISCSIInterface, "default")
	case s.RBD != nil:
		defaultRBD(&s.RBD.RBDPool, &s.RBD.RadosUser, &s.RBD.Keyring)
	case s.AzureDisk != nil:
		defaultAzureDisk(s.AzureDisk)
	case s.ScaleIO != nil:
		defaultScaleIO(&s.ScaleIO.StorageMode, &s.ScaleIO.FSType)
	default:
		// A volume of no source is an empty directory.
		if reflect.ValueOf(s).Elem().IsZero() {
			s.EmptyDir = &corev1.EmptyDirVolumeSource{}
		}
	}
}

func defaultDownwardFiles(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		defaultFieldRef(items[i].FieldRef)
	}
}

func defaultProjected(p *corev1.ProjectedVolumeSource) {
	orPointer(&p.DefaultMode, projectedFileMode)
	for i := range p.Sources {
		if d := p.Sources[i].DownwardAPI; d != nil {
			defaultDownwardFiles(d.Items)
		}
		if t := p.Sources[i].ServiceAccountToken; t != nil {
			orPointer(&t.ExpirationSeconds, 60*60)
		}
	}
}

func defaultRBD(pool, user, keyring *string) {
	orDefault(pool, "rbd")
	orDefault(user, "admin")
	orDefault(keyring, "/etc/ceph/keyring")
}

func defaultAzureDisk(a *corev1.AzureDiskVolumeSource) {
	orPointer(&a.CachingMode, corev1.AzureDataDiskCachingReadWrite)
	orPointer(&a.FSType, "ext4")
	orPointer(&a.ReadOnly, false)
	orPointer(&a.Kind, corev1.AzureSharedBlobDisk)
}

func defaultScaleIO(mode, fsType *string) {
	orDefault(mode, "ThinProvisioned")
	orDefault(fsType, "xfs")
}

func defaultPersistentVolume(o *corev1.PersistentVolume) {
	orDefault(&o.Status.Phase, corev1.VolumePending)
	s := &o.Spec
	orDefault(&s.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
	orPointer(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
	roundResources(s.Capacity)
	if s.HostPath != nil {
		orPointer(&s.HostPath.Type, corev1.HostPathUnset)
	}
	if s.ISCSI != nil {
		orDefault(&s.ISCSI.ISCSIInterface, "default")
	}
	if s.RBD != nil {
		defaultRBD(&s.RBD.RBDPool, &s.RBD.RadosUser, &s.RBD.Keyring)
	}
	if s.AzureDisk != nil {
		defaultAzureDisk(s.AzureDisk)
	}
	if s.ScaleIO != nil {
		defaultScaleIO(&s.ScaleIO.StorageMode, &s.ScaleIO.FSType)
	}
}

func defaultClaim(o *corev1.PersistentVolumeClaim) {
	orDefault(&o.Status.Phase, corev1.ClaimPending)
	defaultClaimSpec(&o.Spec)
	roundResources(o.Status.Capacity)
	roundResources(o.Status.AllocatedResources)
}

func defaultClaimSpec(s *corev1.PersistentVolumeClaimSpec) {
	orPointer(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
	roundResources(s.Resources.Limits)
	roundResources(s.Resources.Requests)
}
