package schemas

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Limits of a StorageClass' parameters.
const (
	maxParameters     = 512
	maxParametersSize = 256 << 10
)

var (
	accessModes     = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod}
	volumeModes     = []corev1.PersistentVolumeMode{corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem}
	reclaimPolicies = []corev1.PersistentVolumeReclaimPolicy{corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain}
	classReclaims   = []corev1.PersistentVolumeReclaimPolicy{corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain}
	bindingModes    = []storagev1.VolumeBindingMode{storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer}
)

func (p *problems) accessModes(modes []corev1.PersistentVolumeAccessMode, at *field.Path) {
	alone, shared := false, false
	for _, m := range modes {
		choose(p, m, at, "accessModes", accessModes)
		alone = alone || m == corev1.ReadWriteOncePod
		shared = shared || m != corev1.ReadWriteOncePod && slices.Contains(accessModes, m)
	}
	if alone && shared {
		p.forbidden(at.Child("accessModes"), "may not use ReadWriteOncePod with other access modes")
	}
}

func validatePersistentVolume(o *corev1.PersistentVolume) field.ErrorList {
	p := podCheck{}
	s, at := &o.Spec, field.NewPath("spec")
	if len(s.AccessModes) == 0 {
		p.required(at.Child("accessModes"), "")
	}
	p.accessModes(s.AccessModes, at)
	p.capacity(s.Capacity, at.Child("capacity"))
	if s.PersistentVolumeReclaimPolicy != "" {
		choose(&p.problems, s.PersistentVolumeReclaimPolicy, at, "persistentVolumeReclaimPolicy", reclaimPolicies)
	}
	if a := s.NodeAffinity; a != nil {
		if a.Required == nil {
			p.required(at.Child("nodeAffinity", "required"), "must specify required node constraints")
		} else {
			p.nodeSelector(a.Required, at.Child("nodeAffinity", "required"))
		}
	}
	p.persistentSource(o, at)
	if s.HostPath != nil && path.Clean(s.HostPath.Path) == "/" && s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		p.forbidden(at.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'")
	}
	if s.StorageClassName != "" {
		p.check(dnsSubdomain, s.StorageClassName, at, "storageClassName")
	}
	choosePtr(&p.problems, s.VolumeMode, at, "volumeMode", volumeModes)
	if c := s.VolumeAttributesClassName; c != nil {
		if *c == "" {
			p.required(at.Child("volumeAttributesClassName"), "an empty string is disallowed")
		} else {
			p.check(dnsSubdomain, *c, at, "volumeAttributesClassName")
		}
		if s.CSI == nil {
			p.required(at.Child("csi"), "has to be specified when using volumeAttributesClassName")
		}
	}
	if _, ok := o.Annotations[corev1.MountOptionAnnotation]; ok && !takesMountOptions(s) {
		p.forbidden(field.NewPath("metadata", "annotations", corev1.MountOptionAnnotation), "may not specify mount options for this volume type")
	}
	return p.found
}

func (p *problems) capacity(c corev1.ResourceList, at *field.Path) {
	if len(c) == 0 {
		p.required(at, "")
	}
	if _, ok := c[corev1.ResourceStorage]; !ok || len(c) > 1 {
		p.found = append(p.found, field.NotSupported(at, fmt.Sprint(sortedResources(c)), []corev1.ResourceName{corev1.ResourceStorage}))
	}
	for _, name := range sortedResources(c) {
		q := c[name]
		if q.Sign() < 0 {
			p.invalid(at.Key(string(name)), q.Value(), "must be a valid resource quantity")
		}
		if q.Sign() <= 0 {
			p.invalid(at.Key(string(name)), q.String(), notPositive)
		}
	}
}

// takesMountOptions says that an old annotation may give the volume options.
func takesMountOptions(s *corev1.PersistentVolumeSpec) bool {
	return s.GCEPersistentDisk != nil || s.AWSElasticBlockStore != nil || s.Glusterfs != nil || s.NFS != nil || s.RBD != nil ||
		s.Quobyte != nil || s.ISCSI != nil || s.Cinder != nil || s.CephFS != nil || s.AzureFile != nil || s.VsphereVolume != nil ||
		s.AzureDisk != nil || s.PhotonPersistentDisk != nil
}

// persistentSource checks that a volume has one source, and that one.
func (p *podCheck) persistentSource(o *corev1.PersistentVolume, at *field.Path) {
	v, s := &o.Spec.PersistentVolumeSource, oneSource{&p.problems, at, false}
	if h := v.HostPath; h != nil && s.first("hostPath") {
		p.hostPath(h, at.Child("hostPath"))
	}
	if g := v.GCEPersistentDisk; g != nil && s.first("gcePersistentDisk") {
		p.partitioned(g.PDName, "pdName", g.Partition, at.Child("persistentDisk"))
	}
	if a := v.AWSElasticBlockStore; a != nil && s.first("awsElasticBlockStore") {
		p.partitioned(a.VolumeID, "volumeID", a.Partition, at.Child("awsElasticBlockStore"))
	}
	if g := v.Glusterfs; g != nil && s.first("glusterfs") {
		at := at.Child("glusterfs")
		p.given(g.EndpointsName, at, "endpoints")
		p.given(g.Path, at, "path")
		if n := g.EndpointsNamespace; n != nil {
			if *n == "" {
				p.invalid(at.Child("endpointsNamespace"), *n, "if the endpointnamespace is set, it must be a valid namespace name")
			} else {
				p.check(validation.IsDNS1123Label, *n, at, "endpointsNamespace")
			}
		}
	}
	if f := v.Flocker; f != nil && s.first("flocker") {
		p.flocker(f, at.Child("flocker"))
	}
	if n := v.NFS; n != nil && s.first("nfs") {
		p.nfs(n, at.Child("nfs"))
	}
	if r := v.RBD; r != nil && s.first("rbd") {
		p.rbd(r.CephMonitors, r.RBDImage, at.Child("rbd"))
	}
	if q := v.Quobyte; q != nil && s.first("quobyte") {
		p.quobyte(q, at.Child("quobyte"))
	}
	if c := v.CephFS; c != nil && s.first("cephFS") && len(c.Monitors) == 0 {
		p.required(at.Child("cephfs", "monitors"), "")
	}
	if c := v.ISCSI; c != nil && s.first("iscsi") {
		at := at.Child("iscsi")
		p.iscsi(&iscsi{c.TargetPortal, c.IQN, c.Lun, c.DiscoveryCHAPAuth || c.SessionCHAPAuth, c.SecretRef != nil, c.InitiatorName}, "must be valid format", at)
		if c.InitiatorName != nil && len(o.Name)+1+len(c.TargetPortal) > maxISCSIName {
			p.invalid(at.Child("targetportal"), c.TargetPortal, longISCSIName)
		}
		if c.SecretRef != nil {
			p.given(c.SecretRef.Name, at.Child("secretRef"), "name")
		}
	}
	if c := v.Cinder; c != nil && s.first("cinder") {
		at := at.Child("cinder")
		p.given(c.VolumeID, at, "volumeID")
		p.secretRef(c.SecretRef, at)
	}
	if f := v.FC; f != nil && s.first("fc") {
		p.fibreChannel(f, at.Child("fc"))
	}
	if f := v.FlexVolume; f != nil {
		s.given = true // Kubernetes lets it stand beside another, and so do we
		p.flexVolume(f.Driver, f.Options, at.Child("flexVolume"))
	}
	if a := v.AzureFile; a != nil && s.first("azureFile") {
		at := at.Child("azureFile")
		p.given(a.SecretName, at, "secretName")
		p.given(a.ShareName, at, "shareName")
		if n := a.SecretNamespace; n != nil {
			p.given(*n, at, "secretNamespace")
		}
	}
	if w := v.VsphereVolume; w != nil && s.first("vsphereVolume") {
		p.given(w.VolumePath, at.Child("vsphereVolume"), "volumePath")
	}
	if d := v.PhotonPersistentDisk; d != nil && s.first("photonPersistentDisk") {
		p.given(d.PdID, at.Child("photonPersistentDisk"), "pdID")
	}
	if w := v.PortworxVolume; w != nil && s.first("portworxVolume") {
		p.given(w.VolumeID, at.Child("portworxVolume"), "volumeID")
	}
	if a := v.AzureDisk; a != nil && s.first("azureDisk") {
		p.azureDisk(a, at.Child("azureDisk"))
	}
	if i := v.ScaleIO; i != nil && s.first("scaleIO") {
		p.scaleIO(i.Gateway, i.System, i.VolumeName, at.Child("scaleIO"))
	}
	if l := v.Local; l != nil && s.first("local") {
		if l.Path == "" {
			p.required(at.Child("local", "path"), "")
		} else {
			p.noBacksteps(l.Path, at.Child("local"), "path")
		}
		if o.Spec.NodeAffinity == nil {
			p.required(at.Child("nodeAffinity"), "Local volume requires node affinity")
		}
	}
	if t := v.StorageOS; t != nil && s.first("storageos") {
		at := at.Child("storageos")
		p.storageOS(t.VolumeName, t.VolumeNamespace, at)
		if r := t.SecretRef; r != nil {
			p.given(r.Name, at.Child("secretRef"), "name")
			p.given(r.Namespace, at.Child("secretRef"), "namespace")
		}
	}
	if c := v.CSI; c != nil && s.first("csi") {
		p.csiVolume(c, at.Child("csi"))
	}
	if !s.given {
		p.required(at, "must specify a volume type")
	}
}

func (p *problems) secretRef(r *corev1.SecretReference, at *field.Path) {
	if r == nil {
		return
	}
	p.given(r.Name, at.Child("secretRef"), "name")
	p.given(r.Namespace, at.Child("secretRef"), "namespace")
}

func (p *problems) csiVolume(c *corev1.CSIPersistentVolumeSource, at *field.Path) {
	p.csiDriver(c.Driver, at.Child("driver"))
	p.given(c.VolumeHandle, at, "volumeHandle")
	for _, r := range []struct {
		name string
		ref  *corev1.SecretReference
	}{
		{"controllerPublishSecretRef", c.ControllerPublishSecretRef}, {"controllerExpandSecretRef", c.ControllerExpandSecretRef},
		{"nodePublishSecretRef", c.NodePublishSecretRef}, {"nodeExpandSecretRef", c.NodeExpandSecretRef},
	} {
		if r.ref != nil {
			p.checkRequired(validation.IsDNS1123Subdomain, r.ref.Name, at.Child(r.name), "name")
			p.checkRequired(validation.IsDNS1123Label, r.ref.Namespace, at.Child(r.name), "namespace")
		}
	}
}

func validatePersistentVolumeUpdate(updated, old *corev1.PersistentVolume) field.ErrorList {
	var p problems
	n, o := &updated.Spec, &old.Spec
	source := n.PersistentVolumeSource
	if source.CSI != nil && o.CSI != nil && o.CSI.ControllerExpandSecretRef == nil && source.CSI.ControllerExpandSecretRef != nil {
		// The one field that may come later: the secret to grow the volume with.
		csi := *source.CSI
		csi.ControllerExpandSecretRef = nil
		source.CSI = &csi
	}
	if changed := FirstDifference(&source, &o.PersistentVolumeSource); changed != "" || !equality.Semantic.DeepEqual(source, o.PersistentVolumeSource) {
		p.forbidden(field.NewPath("spec", "persistentvolumesource"), "spec.persistentvolumesource is immutable after creation\nspec."+changed+" differs")
	}
	p.add(unchanged(n.VolumeMode, o.VolumeMode, field.NewPath("volumeMode")))
	if o.NodeAffinity != nil && !sameNodeAffinity(n.NodeAffinity, o.NodeAffinity) {
		p.invalid(field.NewPath("nodeAffinity"), n.NodeAffinity, immutable+", except for updating from beta label to GA")
	}
	if o.VolumeAttributesClassName != nil && n.VolumeAttributesClassName == nil {
		p.forbidden(field.NewPath("spec", "volumeAttributesClassName"), "update from non-nil value to nil is forbidden")
	}
	return p.found
}

// stableLabels are today's names of labels that nodes had under another.
var stableLabels = map[string]string{
	corev1.LabelFailureDomainBetaZone:   corev1.LabelTopologyZone,
	corev1.LabelFailureDomainBetaRegion: corev1.LabelTopologyRegion,
	"beta.kubernetes.io/os":             corev1.LabelOSStable,
	"beta.kubernetes.io/arch":           corev1.LabelArchStable,
	corev1.LabelInstanceType:            corev1.LabelInstanceTypeStable,
}

// sameNodeAffinity compares but for labels that were renamed since.
func sameNodeAffinity(updated, old *corev1.VolumeNodeAffinity) bool {
	if updated == nil || updated.Required == nil || old.Required == nil {
		return equality.Semantic.DeepEqual(updated, old)
	}
	was, is := old.DeepCopy().Required.NodeSelectorTerms, updated.Required.NodeSelectorTerms
	for i := range min(len(was), len(is)) {
		for j := range min(len(was[i].MatchExpressions), len(is[i].MatchExpressions)) {
			if e := &was[i].MatchExpressions[j]; stableLabels[e.Key] == is[i].MatchExpressions[j].Key {
				e.Key = is[i].MatchExpressions[j].Key
			}
		}
	}
	return equality.Semantic.DeepEqual(is, was)
}

// claimSpec checks the spec of a claim of storage; keepsGroups lets the groups
// of its data source be what they are.
func (p *problems) claimSpec(s *corev1.PersistentVolumeClaimSpec, at *field.Path, keepsGroups bool) {
	if len(s.AccessModes) == 0 {
		p.required(at.Child("accessModes"), "at least 1 access mode is required")
	}
	p.add(validSelector(s.Selector, at.Child("selector")))
	p.accessModes(s.AccessModes, at)
	storage := at.Child("resources").Key(string(corev1.ResourceStorage))
	if q, ok := s.Resources.Requests[corev1.ResourceStorage]; !ok {
		p.required(storage, "")
	} else if q.Sign() <= 0 {
		p.invalid(storage, q.String(), notPositive)
	}
	if c := s.StorageClassName; c != nil && *c != "" {
		p.check(dnsSubdomain, *c, at, "storageClassName")
	}
	choosePtr(p, s.VolumeMode, at, "volumeMode", volumeModes)
	if d := s.DataSource; d != nil {
		p.dataSource(d.APIGroup, d.Kind, d.Name, at.Child("dataSource"), keepsGroups)
	}
	elsewhere := false
	if d := s.DataSourceRef; d != nil {
		p.dataSource(d.APIGroup, d.Kind, d.Name, at.Child("dataSourceRef"), keepsGroups)
		if d.Namespace != nil && *d.Namespace != "" {
			elsewhere = true
			p.check(validation.IsDNS1123Label, *d.Namespace, at.Child("dataSourceRef"), "namespace")
		}
	}
	switch d, r := s.DataSource, s.DataSourceRef; {
	case d == nil || r == nil:
	case elsewhere:
		p.invalid(at, "dataSource", "may not be specified when dataSourceRef.namespace is specified")
	case d.Kind != r.Kind || d.Name != r.Name || !equality.Semantic.DeepEqual(d.APIGroup, r.APIGroup):
		p.invalid(at, "dataSource", "must match dataSourceRef")
	}
	if c := s.VolumeAttributesClassName; c != nil && *c != "" {
		p.check(dnsSubdomain, *c, at, "volumeAttributesClassName")
	}
}

func (p *problems) dataSource(group *string, kind, name string, at *field.Path, keepsGroups bool) {
	p.given(name, at, "name")
	p.given(kind, at, "kind")
	if group == nil || *group == "" {
		if kind != "PersistentVolumeClaim" {
			p.invalid(at, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup")
		}
		return
	}
	if !keepsGroups {
		p.check(validation.IsDNS1123Subdomain, *group, at, "apiGroup")
	}
}

func validateClaim(o *corev1.PersistentVolumeClaim, old Object) field.ErrorList {
	var p problems
	was, ok := old.(*corev1.PersistentVolumeClaim)
	// A group that was let in stays: nobody could correct it.
	keeps := ok && (was.Spec.DataSource != nil && was.Spec.DataSource.APIGroup != nil || was.Spec.DataSourceRef != nil && was.Spec.DataSourceRef.APIGroup != nil)
	p.claimSpec(&o.Spec, field.NewPath("spec"), keeps)
	return p.found
}

func validateClaimUpdate(updated, old *corev1.PersistentVolumeClaim) field.ErrorList {
	var p problems
	at := field.NewPath("spec")
	n, o := updated.Spec.DeepCopy(), old.Spec.DeepCopy()
	if o.VolumeName == "" {
		o.VolumeName = n.VolumeName // the one who binds it may name the volume
	}
	const beta = corev1.BetaStorageClassAnnotation
	class, annotated := old.Annotations[beta]
	later, stillAnnotated := updated.Annotations[beta]
	named := n.StorageClassName != nil && o.StorageClassName == nil
	switch {
	case annotated && named && *n.StorageClassName == class && (!stillAnnotated || later == class):
		n.StorageClassName = nil // the old annotation becomes the field
	default:
		if class != later {
			p.invalid(field.NewPath("metadata", "annotations", beta), later, immutable)
		}
		if named && (!annotated || *n.StorageClassName == class) {
			n.StorageClassName = nil // a default that came after the claim
		}
	}
	bound := updated.Status.Phase == corev1.ClaimBound
	newSize, oldSize := n.Resources.Requests[corev1.ResourceStorage], o.Resources.Requests[corev1.ResourceStorage]
	if bound {
		if n.Resources.Requests != nil {
			n.Resources.Requests[corev1.ResourceStorage] = oldSize
		}
		n.VolumeAttributesClassName = o.VolumeAttributesClassName
	}
	if !equality.Semantic.DeepEqual(n, o) {
		p.forbidden(at, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\nspec."+
			FirstDifference(n, o)+" differs")
	}
	if has := old.Status.Capacity[corev1.ResourceStorage]; newSize.Cmp(oldSize) < 0 && newSize.Cmp(has) <= 0 {
		p.forbidden(at.Child("resources", "requests", "storage"), "field can not be less than status.capacity")
	}
	p.add(unchanged(updated.Spec.VolumeMode, old.Spec.VolumeMode, field.NewPath("volumeMode")))
	if is, was := updated.Spec.VolumeAttributesClassName, old.Spec.VolumeAttributesClassName; old.Status.CurrentVolumeAttributesClassName != nil && !equality.Semantic.DeepEqual(is, was) {
		switch {
		case is == nil:
			p.forbidden(at.Child("volumeAttributesClassName"), "update to nil is forbidden when status.currentVolumeAttributesClassName is not nil")
		case *is == "":
			p.forbidden(at.Child("volumeAttributesClassName"), "update to empty string is forbidden when status.currentVolumeAttributesClassName is not nil")
		}
	}
	return p.found
}

func validateStorageClass(o *storagev1.StorageClass) field.ErrorList {
	var p problems
	if o.Provisioner == "" {
		p.required(field.NewPath("provisioner"), "")
	} else {
		p.invalid(field.NewPath("provisioner"), o.Provisioner, validation.IsQualifiedName(strings.ToLower(o.Provisioner))...)
	}
	p.parameters(o.Parameters, field.NewPath("parameters"))
	if r := o.ReclaimPolicy; r != nil && *r != "" {
		choose(&p, *r, nil, "reclaimPolicy", classReclaims)
	}
	if o.VolumeBindingMode == nil {
		p.required(field.NewPath("volumeBindingMode"), "")
	} else {
		choose(&p, *o.VolumeBindingMode, nil, "volumeBindingMode", bindingModes)
	}
	for i := range o.AllowedTopologies {
		at := field.NewPath("allowedTopologies").Index(i)
		p.topology(&o.AllowedTopologies[i], at)
		for j := range i {
			if sameTopology(&o.AllowedTopologies[i], &o.AllowedTopologies[j]) {
				p.duplicate(at.Child("matchLabelExpressions"), "")
			}
		}
	}
	return p.found
}

func (p *problems) parameters(m map[string]string, at *field.Path) {
	if len(m) > maxParameters {
		p.tooLong(at, maxParameters)
		return
	}
	size := 0
	for k, v := range m {
		if k == "" {
			p.invalid(at, k, "field can not be empty.")
		}
		size += len(k) + len(v)
	}
	if size > maxParametersSize {
		p.tooLong(at, maxParametersSize)
	}
}

func (p *problems) topology(t *corev1.TopologySelectorTerm, at *field.Path) {
	keys := map[string]bool{}
	for i, e := range t.MatchLabelExpressions {
		at := at.Child("matchLabelExpressions").Index(i)
		if len(e.Values) == 0 {
			p.required(at.Child("values"), "")
		}
		for j, v := range e.Values {
			if slices.Contains(e.Values[:j], v) {
				p.duplicate(at.Child("values").Index(j), v)
			}
		}
		p.add(metavalidation.ValidateLabelName(e.Key, at.Child("key")))
		if keys[e.Key] {
			p.duplicate(at.Child("key"), e.Key)
		}
		keys[e.Key] = true
	}
}

// sameTopology says that two terms select the same, in whatever order.
func sameTopology(a, b *corev1.TopologySelectorTerm) bool {
	sets := func(t *corev1.TopologySelectorTerm) map[string]map[string]bool {
		out := map[string]map[string]bool{}
		for _, e := range t.MatchLabelExpressions {
			out[e.Key] = map[string]bool{}
			for _, v := range e.Values {
				out[e.Key][v] = true
			}
		}
		return out
	}
	return equality.Semantic.DeepEqual(sets(a), sets(b))
}

func validateStorageClassUpdate(updated, old *storagev1.StorageClass) field.ErrorList {
	errs := unchanged(updated.Parameters, old.Parameters, field.NewPath("parameters"))
	errs = append(errs, unchanged(updated.Provisioner, old.Provisioner, field.NewPath("provisioner"))...)
	errs = append(errs, unchanged(updated.ReclaimPolicy, old.ReclaimPolicy, field.NewPath("reclaimPolicy"))...)
	return append(errs, unchanged(updated.VolumeBindingMode, old.VolumeBindingMode, field.NewPath("volumeBindingMode"))...)
}
