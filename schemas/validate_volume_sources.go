package schemas

import (
	"net"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What volumes of pods and PersistentVolumes have in common, by their source.

const (
	maxISCSIName  = 64
	longISCSIName = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified."
	maxCSIDriver  = 63
	maxTenant     = 64
)

var (
	iqnName = regexp.MustCompile(`iqn\.\d{4}-\d{2}\.([[:alnum:]-.]+)(:[^,;*&$|\s]+)$`)
	euiName = regexp.MustCompile(`^eui.[[:alnum:]]{16}$`)
	naaName = regexp.MustCompile(`^naa.[[:alnum:]]{32}$`)

	azureCaching = []corev1.AzureDataDiskCachingMode{corev1.AzureDataDiskCachingNone, corev1.AzureDataDiskCachingReadOnly, corev1.AzureDataDiskCachingReadWrite}
	azureKinds   = []corev1.AzureDataDiskKind{corev1.AzureDedicatedBlobDisk, corev1.AzureManagedDisk, corev1.AzureSharedBlobDisk}
)

// partitioned checks a cloud's disk and the number of a partition on it.
func (p *problems) partitioned(id, name string, partition int32, at *field.Path) {
	p.given(id, at, name)
	if partition < 0 || partition > 255 {
		p.invalid(at.Child("partition"), partition, validation.InclusiveRangeError(1, 255))
	}
}

// iscsi is what both iSCSI sources have.
type iscsi struct {
	portal, iqn      string
	lun              int32
	usesCHAP, secret bool
	initiator        *string
}

// iscsi checks a source; prefix is what it says of a name that is none of the
// three formats.
func (p *problems) iscsi(s *iscsi, prefix string, at *field.Path) {
	p.given(s.portal, at, "targetPortal")
	if s.iqn == "" {
		p.required(at.Child("iqn"), "")
	} else {
		p.iscsiName(s.iqn, prefix, at.Child("iqn"))
	}
	if s.lun < 0 || s.lun > 255 {
		p.invalid(at.Child("lun"), s.lun, validation.InclusiveRangeError(0, 255))
	}
	if s.usesCHAP && !s.secret {
		p.required(at.Child("secretRef"), "")
	}
	if s.initiator != nil {
		p.iscsiName(*s.initiator, prefix, at.Child("initiatorname"))
	}
}

func (p *problems) iscsiName(name, prefix string, at *field.Path) {
	format := map[string]*regexp.Regexp{"iqn": iqnName, "eui": euiName, "naa": naaName}[name[:min(3, len(name))]]
	switch {
	case format == nil:
		p.invalid(at, name, prefix)
	case !format.MatchString(name):
		p.invalid(at, name, "must be valid format")
	}
}

func (p *problems) flocker(f *corev1.FlockerVolumeSource, at *field.Path) {
	switch {
	case f.DatasetName == "" && f.DatasetUUID == "":
		p.required(at, "one of datasetName and datasetUUID is required")
	case f.DatasetName != "" && f.DatasetUUID != "":
		p.invalid(at, "resource", "datasetName and datasetUUID can not be specified simultaneously")
	}
	if strings.Contains(f.DatasetName, "/") {
		p.invalid(at.Child("datasetName"), f.DatasetName, "must not contain '/'")
	}
}

func (p *problems) rbd(monitors []string, image string, at *field.Path) {
	if len(monitors) == 0 {
		p.required(at.Child("monitors"), "")
	}
	p.given(image, at, "image")
}

func (p *problems) quobyte(q *corev1.QuobyteVolumeSource, at *field.Path) {
	const pairs = "must be a host:port pair or multiple pairs separated by commas"
	switch {
	case q.Registry == "":
		p.required(at.Child("registry"), pairs)
	case len(q.Tenant) > maxTenant:
		p.required(at.Child("tenant"), "must be a UUID and may not exceed a length of 64 characters")
	default:
		for pair := range strings.SplitSeq(q.Registry, ",") {
			if _, _, err := net.SplitHostPort(pair); err != nil {
				p.invalid(at.Child("registry"), q.Registry, pairs)
			}
		}
	}
	p.given(q.Volume, at, "volume")
}

func (p *problems) fibreChannel(f *corev1.FCVolumeSource, at *field.Path) {
	switch {
	case len(f.TargetWWNs) == 0 && len(f.WWIDs) == 0:
		p.required(at.Child("targetWWNs"), "must specify either targetWWNs or wwids, but not both")
	case len(f.TargetWWNs) > 0 && len(f.WWIDs) > 0:
		p.invalid(at.Child("targetWWNs"), f.TargetWWNs, "targetWWNs and wwids can not be specified simultaneously")
	}
	switch {
	case len(f.TargetWWNs) == 0:
	case f.Lun == nil:
		p.required(at.Child("lun"), "lun is required if targetWWNs is specified")
	case *f.Lun < 0 || *f.Lun > 255:
		p.invalid(at.Child("lun"), *f.Lun, validation.InclusiveRangeError(0, 255))
	}
}

func (p *problems) flexVolume(driver string, options map[string]string, at *field.Path) {
	p.given(driver, at, "driver")
	for key := range options {
		domain, _, _ := strings.Cut(key, "/")
		if domain = "." + strings.ToLower(domain); strings.HasSuffix(domain, ".kubernetes.io") || strings.HasSuffix(domain, ".k8s.io") {
			p.invalid(at.Child("options").Key(key), key, "kubernetes.io and k8s.io namespaces are reserved")
		}
	}
}

func (p *problems) azureDisk(a *corev1.AzureDiskVolumeSource, at *field.Path) {
	p.given(a.DiskName, at, "diskName")
	p.given(a.DataDiskURI, at, "diskURI")
	choosePtr(p, a.CachingMode, at, "cachingMode", azureCaching)
	choosePtr(p, a.Kind, at, "kind", azureKinds)
	if a.Kind == nil {
		return
	}
	start, form := "https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"
	if *a.Kind == corev1.AzureManagedDisk {
		start, form = "/subscriptions/", "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"
	}
	if !strings.HasPrefix(a.DataDiskURI, start) {
		p.found = append(p.found, field.NotSupported(at.Child("diskURI"), a.DataDiskURI, []string{form}))
	}
}

func (p *problems) storageOS(name, namespace string, at *field.Path) {
	p.checkRequired(validation.IsDNS1123Label, name, at, "volumeName")
	if namespace != "" {
		p.check(validation.IsDNS1123Label, namespace, at, "volumeNamespace")
	}
}

func (p *problems) scaleIO(gateway, system, volume string, at *field.Path) {
	p.given(gateway, at, "gateway")
	p.given(system, at, "system")
	p.given(volume, at, "volumeName")
}

func (p *problems) csiDriver(name string, at *field.Path) {
	if name == "" {
		p.required(at, "")
		return
	}
	if len(name) > maxCSIDriver {
		p.tooLong(at, maxCSIDriver)
	}
	p.invalid(at, name, validation.IsDNS1123Subdomain(strings.ToLower(name))...)
}
