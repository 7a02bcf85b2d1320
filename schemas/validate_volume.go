package schemas

import (
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	oneVolumeType = "may not specify more than 1 volume type"
	badFileMode   = "must be a number between 0 and 0777 (octal), both inclusive"
)

var (
	propagations   = []corev1.MountPropagationMode{corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone}
	readOnlyDepths = []corev1.RecursiveReadOnlyMode{corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible}
	hostPathTypes  = []corev1.HostPathType{corev1.HostPathUnset, corev1.HostPathBlockDev, corev1.HostPathCharDev, corev1.HostPathDirectory,
		corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket}
	certificateKeys = []string{"RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"}
)

// podVolumes checks spec.volumes and remembers those that containers may
// mount: the ones without an error.
func (p *podCheck) podVolumes() {
	if len(p.spec.Volumes) == 0 {
		return
	}
	p.volumes = make(map[string]*corev1.Volume, len(p.spec.Volumes))
	made := map[string]bool{}
	for i := range p.spec.Volumes {
		if v := &p.spec.Volumes[i]; v.Ephemeral != nil && p.isPod && p.meta.Name != "" {
			made[p.meta.Name+"-"+v.Name] = true
		}
	}
	for i := range p.spec.Volumes {
		v, at := &p.spec.Volumes[i], p.at.Child("volumes").Index(i)
		before := len(p.found)
		p.volumeSource(v, at)
		p.checkRequired(validation.IsDNS1123Label, v.Name, at, "name")
		if p.volumes[v.Name] != nil {
			p.duplicate(at.Child("name"), v.Name)
		}
		if len(p.found) == before {
			p.volumes[v.Name] = v
		}
		if c := v.PersistentVolumeClaim; c != nil && made[c.ClaimName] {
			p.invalid(at.Child("persistentVolumeClaim", "claimName"), c.ClaimName, "must not reference a PVC that gets created for an ephemeral volume")
		}
	}
}

// volumeSource checks that a volume has one source, and that one.
func (p *podCheck) volumeSource(v *corev1.Volume, at *field.Path) {
	s := oneSource{&p.problems, at, false}
	if e := v.EmptyDir; e != nil {
		s.given = true
		if e.SizeLimit != nil && e.SizeLimit.Sign() < 0 {
			p.forbidden(at.Child("emptyDir", "sizeLimit"), "SizeLimit field must be a valid resource quantity")
		}
	}
	if h := v.HostPath; h != nil && s.first("hostPath") {
		p.hostPath(h, at.Child("hostPath"))
	}
	if g := v.GitRepo; g != nil && s.first("gitRepo") {
		p.given(g.Repository, at.Child("gitRepo"), "repository")
		p.relativePath(g.Directory, at.Child("gitRepo"), "directory")
	}
	if g := v.GCEPersistentDisk; g != nil && s.first("gcePersistentDisk") {
		p.partitioned(g.PDName, "pdName", g.Partition, at.Child("persistentDisk"))
	}
	if a := v.AWSElasticBlockStore; a != nil && s.first("awsElasticBlockStore") {
		p.partitioned(a.VolumeID, "volumeID", a.Partition, at.Child("awsElasticBlockStore"))
	}
	if c := v.Secret; c != nil && s.first("secret") {
		at := at.Child("secret")
		p.given(c.SecretName, at, "secretName")
		p.fileMode(c.DefaultMode, at, "defaultMode")
		p.keysToPaths(c.Items, at)
	}
	if n := v.NFS; n != nil && s.first("nfs") {
		p.nfs(n, at.Child("nfs"))
	}
	if c := v.ISCSI; c != nil {
		if s.first("iscsi") {
			p.iscsi(&iscsi{c.TargetPortal, c.IQN, c.Lun, c.DiscoveryCHAPAuth || c.SessionCHAPAuth, c.SecretRef != nil, c.InitiatorName},
				"must be valid format starting with iqn, eui, or naa", at.Child("iscsi"))
		}
		if c.InitiatorName != nil && len(v.Name)+1+len(c.TargetPortal) > maxISCSIName {
			p.invalid(at.Child("name"), v.Name, longISCSIName)
		}
	}
	if g := v.Glusterfs; g != nil && s.first("glusterfs") {
		p.given(g.EndpointsName, at.Child("glusterfs"), "endpoints")
		p.given(g.Path, at.Child("glusterfs"), "path")
	}
	if f := v.Flocker; f != nil && s.first("flocker") {
		p.flocker(f, at.Child("flocker"))
	}
	if c := v.PersistentVolumeClaim; c != nil && s.first("persistentVolumeClaim") {
		p.given(c.ClaimName, at.Child("persistentVolumeClaim"), "claimName")
	}
	if r := v.RBD; r != nil && s.first("rbd") {
		p.rbd(r.CephMonitors, r.RBDImage, at.Child("rbd"))
	}
	if c := v.Cinder; c != nil && s.first("cinder") {
		at := at.Child("cinder")
		p.given(c.VolumeID, at, "volumeID")
		if c.SecretRef != nil {
			p.given(c.SecretRef.Name, at.Child("secretRef"), "name")
		}
	}
	if c := v.CephFS; c != nil && s.first("cephFS") && len(c.Monitors) == 0 {
		p.required(at.Child("cephfs", "monitors"), "")
	}
	if q := v.Quobyte; q != nil && s.first("quobyte") {
		p.quobyte(q, at.Child("quobyte"))
	}
	if d := v.DownwardAPI; d != nil && s.first("downwarAPI") {
		at := at.Child("downwardAPI")
		p.fileMode(d.DefaultMode, at, "defaultMode")
		for i := range d.Items {
			p.downwardFile(&d.Items[i], at)
		}
	}
	if f := v.FC; f != nil && s.first("fc") {
		p.fibreChannel(f, at.Child("fc"))
	}
	if f := v.FlexVolume; f != nil && s.first("flexVolume") {
		p.flexVolume(f.Driver, f.Options, at.Child("flexVolume"))
	}
	if c := v.ConfigMap; c != nil && s.first("configMap") {
		at := at.Child("configMap")
		p.given(c.Name, at, "name")
		p.fileMode(c.DefaultMode, at, "defaultMode")
		p.keysToPaths(c.Items, at)
	}
	if a := v.AzureFile; a != nil && s.first("azureFile") {
		p.given(a.SecretName, at.Child("azureFile"), "secretName")
		p.given(a.ShareName, at.Child("azureFile"), "shareName")
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
	if o := v.StorageOS; o != nil && s.first("storageos") {
		at := at.Child("storageos")
		p.storageOS(o.VolumeName, o.VolumeNamespace, at)
		if o.SecretRef != nil {
			p.given(o.SecretRef.Name, at.Child("secretRef"), "name")
		}
	}
	if j := v.Projected; j != nil && s.first("projected") {
		p.projected(j, at.Child("projected"))
	}
	if i := v.ScaleIO; i != nil && s.first("scaleIO") {
		p.scaleIO(i.Gateway, i.System, i.VolumeName, at.Child("scaleIO"))
	}
	if c := v.CSI; c != nil && s.first("csi") {
		at := at.Child("csi")
		p.csiDriver(c.Driver, at.Child("driver"))
		if r := c.NodePublishSecretRef; r != nil {
			if r.Name == "" {
				p.required(at.Child("nodePublishSecretRef", "name"), "")
			} else {
				p.check(dnsSubdomain, r.Name, at, "name")
			}
		}
	}
	if e := v.Ephemeral; e != nil && s.first("ephemeral") {
		p.ephemeralVolume(v, at)
	}
	if i := v.Image; i != nil && s.first("image") {
		p.given(i.Reference, at.Child("image"), "reference")
		chooseRequired(&p.problems, i.PullPolicy, at.Child("image"), "pullPolicy", pullPolicies)
	}
	if !s.given {
		p.required(at, "must specify a volume type")
	}
}

// oneSource counts the sources of a volume: the second and later are refused
// unread.
type oneSource struct {
	p     *problems
	at    *field.Path
	given bool
}

func (s *oneSource) first(name string) bool {
	if s.given {
		s.p.forbidden(s.at.Child(name), oneVolumeType)
		return false
	}
	s.given = true
	return true
}

func (p *podCheck) ephemeralVolume(v *corev1.Volume, at *field.Path) {
	t := v.Ephemeral.VolumeClaimTemplate
	if t == nil {
		p.required(at.Child("ephemeral", "volumeClaimTemplate"), "")
	} else {
		at := at.Child("ephemeral", "volumeClaimTemplate")
		p.add(apivalidation.ValidateAnnotations(t.Annotations, at.Child("metadata", "annotations")))
		p.add(metavalidation.ValidateLabels(t.Labels, at.Child("metadata", "labels")))
		rest := t.ObjectMeta
		rest.Annotations, rest.Labels = nil, nil
		for _, name := range setFields(&rest) {
			p.forbidden(at.Child("metadata", name), "cannot be set")
		}
		p.claimSpec(&t.Spec, at.Child("spec"), false)
	}
	if p.isPod && p.meta.Name != "" && v.Name != "" {
		name := p.meta.Name + "-" + v.Name
		for _, m := range dnsSubdomain(name) {
			p.invalid(at.Child("name"), v.Name, fmt.Sprintf("PVC name %q: %v", name, m))
		}
	}
}

// setFields are the names of the fields of metadata that are set.
func setFields(m *metav1.ObjectMeta) []string {
	var out []string
	v := reflect.ValueOf(m).Elem()
	for i := range v.NumField() {
		if !v.Field(i).IsZero() {
			name := v.Type().Field(i).Name
			out = append(out, strings.ToLower(name[:1])+name[1:])
		}
	}
	return out
}

func (p *problems) fileMode(mode *int32, at *field.Path, name string) {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		p.invalid(at.Child(name), *mode, badFileMode)
	}
}

func (p *problems) keysToPaths(items []corev1.KeyToPath, at *field.Path) {
	for i := range items {
		k, at := &items[i], at.Child("items").Index(i)
		p.given(k.Key, at, "key")
		p.given(k.Path, at, "path")
		p.filePath(k.Path, at, "path")
		p.fileMode(k.Mode, at, "mode")
	}
}

// filePath takes the path of a file in a volume that the node writes: names
// that begin with .. are its own.
func (p *problems) filePath(value string, at *field.Path, name string) {
	p.relativePath(value, at, name)
	if strings.HasPrefix(value, "..") && !strings.HasPrefix(value, "../") {
		p.invalid(at.Child(name), value, "must not start with '..'")
	}
}

func (p *problems) downwardFile(f *corev1.DownwardAPIVolumeFile, at *field.Path) {
	p.given(f.Path, at, "path")
	p.filePath(f.Path, at, "path")
	switch {
	case f.FieldRef != nil:
		p.fieldRef(f.FieldRef, namesOfDownwardFile, at.Child("fieldRef"))
		if f.ResourceFieldRef != nil {
			p.invalid(at, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
		}
	case f.ResourceFieldRef != nil:
		p.resourceFieldRef(f.ResourceFieldRef, true, at.Child("resourceFieldRef"))
	default:
		p.required(at, "one of fieldRef and resourceFieldRef is required")
	}
	p.fileMode(f.Mode, at, "mode")
}

func (p *problems) hostPath(h *corev1.HostPathVolumeSource, at *field.Path) {
	if h.Path == "" {
		p.required(at.Child("path"), "")
		return
	}
	p.noBacksteps(h.Path, at, "path")
	choosePtr(p, h.Type, at, "type", hostPathTypes)
}

func (p *problems) nfs(n *corev1.NFSVolumeSource, at *field.Path) {
	p.given(n.Server, at, "server")
	p.given(n.Path, at, "path")
	if !path.IsAbs(n.Path) {
		p.invalid(at.Child("path"), n.Path, "must be an absolute path")
	}
}

// projected checks a volume that puts several sources into one directory.
func (p *problems) projected(v *corev1.ProjectedVolumeSource, at *field.Path) {
	p.fileMode(v.DefaultMode, at, "defaultMode")
	paths := map[string]bool{}
	// Two files may not have one path. The error names the volume, as in Kubernetes.
	once := func(name string) {
		if paths[name] {
			p.invalid(at, name, "conflicting duplicate paths")
		}
		paths[name] = true
	}
	keys := func(items []corev1.KeyToPath, at *field.Path) {
		p.keysToPaths(items, at)
		for i := range items {
			if items[i].Path != "" {
				once(items[i].Path)
			}
		}
	}
	for i := range v.Sources {
		s, from, given := &v.Sources[i], at.Child("sources").Index(i), 0
		if c := s.Secret; c != nil {
			given++
			p.given(c.Name, from.Child("secret"), "name")
			keys(c.Items, from.Child("secret"))
		}
		if c := s.ConfigMap; c != nil {
			given++
			p.given(c.Name, from.Child("configMap"), "name")
			keys(c.Items, from.Child("configMap"))
		}
		if d := s.DownwardAPI; d != nil {
			given++
			for j := range d.Items {
				p.downwardFile(&d.Items[j], from.Child("downwardAPI"))
				if d.Items[j].Path != "" {
					once(d.Items[j].Path)
				}
			}
		}
		if t := s.ServiceAccountToken; t != nil {
			given++
			p.tokenProjection(t, at, from.Child("serviceAccountToken"))
		}
		if b := s.ClusterTrustBundle; b != nil {
			given++
			p.trustBundle(b, from.Child("clusterTrustBundle"))
			once(b.Path)
		}
		if c := s.PodCertificate; c != nil {
			given++
			p.podCertificate(c, from.Child("podCertificate"), once)
		}
		if given > 1 {
			p.forbidden(from, "may not specify more than 1 volume type per source")
		}
	}
}

func (p *problems) tokenProjection(t *corev1.ServiceAccountTokenProjection, volume, at *field.Path) {
	switch e := t.ExpirationSeconds; {
	case e == nil:
		p.required(at.Child("expirationSeconds"), "")
	case *e < 10*60:
		p.invalid(at.Child("expirationSeconds"), *e, "may not specify a duration less than 10 minutes")
	case *e > 1<<32:
		p.invalid(at.Child("expirationSeconds"), *e, "may not specify a duration larger than 2^32 seconds")
	}
	if t.Path == "" {
		p.required(volume.Child("path"), "")
		return
	}
	p.filePath(t.Path, volume, "path")
}

func (p *problems) trustBundle(b *corev1.ClusterTrustBundleProjection, at *field.Path) {
	switch {
	case b.Name != nil && b.SignerName != nil:
		p.invalid(at, *b.Name, "only one of name and signerName may be used")
	case b.Name != nil:
		if *b.Name == "" {
			p.required(at.Child("name"), "must be a valid object name")
		}
		for _, m := range bundleNameProblems(*b.Name) {
			p.invalid(at.Child("name"), *b.Name, "not a valid clustertrustbundlename: "+m)
		}
		if b.LabelSelector != nil {
			p.invalid(at.Child("labelSelector"), b.LabelSelector, "labelSelector must be unset if name is specified")
		}
	case b.SignerName != nil:
		if *b.SignerName == "" {
			p.required(at.Child("signerName"), "must be a valid signer name")
		}
		p.signerName(*b.SignerName, at.Child("signerName"))
		p.add(validSelector(b.LabelSelector, at.Child("labelSelector")))
	default:
		p.required(at, "either name or signerName must be specified")
	}
	p.given(b.Path, at, "path")
	p.filePath(b.Path, at, "path")
}

// bundleNameProblems says what is wrong with the name of a trust bundle, which
// begins with its signer's where it has one.
func bundleNameProblems(name string) []string {
	i := strings.LastIndexByte(name, ':')
	if i < 0 {
		return dnsSubdomain(name)
	}
	return dnsSubdomain(name[i+1:])
}

// signerName takes domain/path.
func (p *problems) signerName(name string, at *field.Path) {
	if name == "" {
		p.required(at, "")
		return
	}
	domain, rest, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(rest, "/") {
		p.invalid(at, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
		return
	}
	const most = validation.DNS1123SubdomainMaxLength
	if len(domain) > most {
		p.tooLong(at, most)
	}
	steps := func(value string, rule func(string) []string) {
		for l := range strings.SplitSeq(value, ".") {
			if messages := rule(l); len(messages) > 0 {
				for _, m := range messages {
					p.invalid(at, value, fmt.Sprintf("validating label %q: %s", l, m))
				}
				return // one is enough
			}
		}
	}
	steps(domain, validation.IsDNS1123Label)
	if !strings.Contains(domain, ".") {
		p.invalid(at, domain, "should be a domain with at least two segments separated by dots")
	}
	steps(rest, validation.IsDNS1123Subdomain)
	if longest := most + 1 + most + 1 + validation.DNS1123LabelMaxLength; len(name) > longest {
		p.tooLong(at, longest)
	}
}

// Limits in seconds of how long a pod's certificate may be good for.
const (
	minCertificateSeconds         = 60 * 60
	maxCertificateSeconds         = 91 * 24 * 60 * 60
	maxInternalCertificateSeconds = 24 * 60 * 60
)

func (p *problems) podCertificate(c *corev1.PodCertificateProjection, at *field.Path, once func(string)) {
	p.signerName(c.SignerName, at.Child("signerName"))
	for key := range c.UserAnnotations {
		p.add(validation.IsDomainPrefixedKey(at.Child("userAnnotations"), strings.ToLower(key)))
	}
	if apivalidation.ValidateAnnotationsSize(c.UserAnnotations) != nil {
		p.tooLong(at.Child("userAnnotations"), apivalidation.TotalAnnotationSizeLimitB)
	}
	choose(p, c.KeyType, at, "keyType", certificateKeys)
	if s := c.MaxExpirationSeconds; s != nil {
		most := int32(maxCertificateSeconds)
		if domain, _, _ := strings.Cut(c.SignerName, "/"); domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") {
			most = maxInternalCertificateSeconds
		}
		if *s < minCertificateSeconds {
			p.invalid(at.Child("maxExpirationSeconds"), *s, fmt.Sprintf("if provided, maxExpirationSeconds must be >= %d", minCertificateSeconds))
		}
		if *s > most {
			p.invalid(at.Child("maxExpirationSeconds"), *s, fmt.Sprintf("if provided, maxExpirationSeconds must be <= %d", most))
		}
	}
	given := false
	for _, f := range []struct{ name, path string }{
		{"credentialBundlePath", c.CredentialBundlePath}, {"keyPath", c.KeyPath}, {"certificateChainPath", c.CertificateChainPath},
	} {
		if f.path != "" {
			given = true
			p.filePath(f.path, at, f.name)
			once(f.path)
		}
	}
	if !given {
		p.required(at, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath")
	}
}

// mounts checks a container's volumeMounts against the pod's volumes.
func (p *podCheck) mounts(c *corev1.Container, container *field.Path) {
	if len(c.VolumeMounts) == 0 {
		return
	}
	list := container.Child("volumeMounts")
	paths := map[string]bool{}
	for i := range c.VolumeMounts {
		m, at := &c.VolumeMounts[i], list.Index(i)
		p.given(m.Name, at, "name")
		if p.volumes[m.Name] == nil {
			p.notFound(at.Child("name"), m.Name)
		}
		p.given(m.MountPath, at, "mountPath")
		if paths[m.MountPath] {
			p.invalid(at.Child("mountPath"), m.MountPath, "must be unique")
		}
		paths[m.MountPath] = true
		if slices.ContainsFunc(c.VolumeDevices, func(d corev1.VolumeDevice) bool { return d.Name == m.Name }) {
			p.invalid(at.Child("name"), m.Name, "must not already exist in volumeDevices")
		}
		if slices.ContainsFunc(c.VolumeDevices, func(d corev1.VolumeDevice) bool { return d.DevicePath == m.MountPath }) {
			p.invalid(at.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices")
		}
		// Below, Kubernetes' paths leave the mount's index out.
		if m.SubPath != "" {
			p.relativePath(m.SubPath, list, "subPath")
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				p.invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive")
			}
			p.relativePath(m.SubPathExpr, list, "subPathExpr")
		}
		choosePtr(&p.problems, m.MountPropagation, list, "mountPropagation", propagations)
		if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional &&
			(c.SecurityContext == nil || c.SecurityContext.Privileged == nil || !*c.SecurityContext.Privileged) {
			p.forbidden(list.Child("mountPropagation"), "Bidirectional mount propagation is available only to privileged containers")
		}
		p.recursiveReadOnly(m, list)
	}
}

func (p *podCheck) recursiveReadOnly(m *corev1.VolumeMount, at *field.Path) {
	if m.RecursiveReadOnly == nil {
		return
	}
	choose(&p.problems, *m.RecursiveReadOnly, at, "recursiveReadOnly", readOnlyDepths)
	if *m.RecursiveReadOnly != corev1.RecursiveReadOnlyEnabled && *m.RecursiveReadOnly != corev1.RecursiveReadOnlyIfPossible {
		return
	}
	if !m.ReadOnly {
		p.forbidden(at.Child("recursiveReadOnly"), "may only be specified when readOnly is true")
	}
	if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
		p.forbidden(at.Child("recursiveReadOnly"), "may only be specified when mountPropagation is None or not specified")
	}
}

// devices checks a container's volumeDevices: claims that it sees as blocks.
func (p *podCheck) devices(c *corev1.Container, container *field.Path) {
	names, paths := map[string]bool{}, map[string]bool{}
	for i := range c.VolumeDevices {
		d, at := &c.VolumeDevices[i], container.Child("volumeDevices").Index(i)
		p.given(d.Name, at, "name")
		if names[d.Name] {
			p.invalid(at.Child("name"), d.Name, "must be unique")
		}
		switch v := p.volumes[d.Name]; {
		case v == nil:
			p.notFound(at.Child("name"), d.Name)
		case v.PersistentVolumeClaim == nil && v.Ephemeral == nil:
			p.invalid(at.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
		}
		p.given(d.DevicePath, at, "devicePath")
		if paths[d.DevicePath] {
			p.invalid(at.Child("devicePath"), d.DevicePath, "must be unique")
		}
		if slices.Contains(strings.Split(d.DevicePath, "/"), "..") {
			p.invalid(at.Child("devicePath"), d.DevicePath, "can not contain backsteps ('..')")
		} else {
			paths[d.DevicePath] = true
		}
		if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == d.Name }) {
			p.invalid(at.Child("name"), d.Name, "must not already exist in volumeMounts")
		}
		if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == d.DevicePath }) {
			p.invalid(at.Child("devicePath"), d.DevicePath, "must not already exist as a path in volumeMounts")
		}
		if d.Name != "" {
			names[d.Name] = true
		}
	}
}
