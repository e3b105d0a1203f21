from patchout.hear.api import published

load_model, get_scene_embeddings, get_timestamp_embeddings = published(__name__)
