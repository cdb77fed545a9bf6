"""Find a network that reads digits inside one that was never trained.

    python examples/subnetwork_extraction.py

Every weight keeps the sign it was initialized with; only which weights are kept is learned, and one scale per layer. The digits come with
scikit-learn; nothing is downloaded.
"""

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_gibbs as kg

EPOCHS = 60


def digits():
    data = load_digits()
    images = (data.images[..., None] / 16).astype("float32")
    return train_test_split(images, data.target, test_size=360, random_state=0, stratify=data.target)


def convnet():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(128, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def main():
    keras.utils.set_random_seed(0)
    x_train, x_test, y_train, y_test = digits()
    random_network = convnet()
    pruned = kg.prune(random_network, kg.GumbelSoftmax())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    pruned.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    pruned.fit(x_train, y_train, batch_size=64, epochs=EPOCHS, verbose=2, callbacks=[kg.GibbsPruningCallback()])

    final = kg.strip_pruning(pruned)
    for name, model in (("random network", random_network), ("its subnetwork", final)):
        model.compile(loss=loss, metrics=["accuracy"])
        print(f"{name}: {model.evaluate(x_test, y_test, verbose=0)[1]:.2%} of {len(x_test)} test digits right")
    print(kg.summary(pruned))


if __name__ == "__main__":
    main()
