"""Mean and std that families normalise pixels by, for files that do not state them."""

IMAGENET = {'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}
CLIP = {'mean': [0.48145466, 0.4578275, 0.40821073], 'std': [0.26862954, 0.26130258, 0.27577711]}
HALF = {'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]}
